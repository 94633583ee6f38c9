"""Batches: every row is in one of them, and padding is on the right side."""

from __future__ import annotations

import torch

from skillweave.base.batching import batch_rows, by_length, pad_left, pad_right, padded, within_tokens

LENGTHS = [3, 9, 1, 7, 4, 4, 5]


def test_by_length_takes_every_row_once_the_longest_first() -> None:
    assert by_length(LENGTHS, 3) == [[1, 3, 6], [4, 5, 0], [2]]
    assert by_length(LENGTHS, 100) == [[1, 3, 6, 4, 5, 0, 2]]
    assert by_length([], 3) == []


def test_by_length_with_the_shortest_first_keeps_the_order_of_equal_rows() -> None:
    assert by_length(LENGTHS, 3, shortest_first=True) == [[2, 0, 4], [5, 6, 3], [1]]


def test_within_tokens_counts_padding_and_gives_a_long_row_a_batch_of_its_own() -> None:
    assert within_tokens(LENGTHS, 12) == [[2, 0, 4], [5, 6], [3], [1]]
    assert within_tokens(LENGTHS, 2) == [[2], [0], [4], [5], [6], [3], [1]]
    assert within_tokens([], 12) == []


def test_rows_of_a_batch_may_write_equally_many_tokens_and_are_of_one_kind() -> None:
    assert batch_rows([0, 1, 2, 2], lengths=[3, 9, 3], room=[5, 2, 5], batch_size=2) == [[1], [0, 2], [2]]
    kinds = "abab"
    batches = batch_rows([0, 1, 2, 3], [4, 3, 2, 1], [1, 1, 1, 1], 4, apart=lambda row: kinds[row])
    assert batches == [[0, 2], [1, 3]]


def test_padding_on_the_left_ends_every_row_at_the_last_column() -> None:
    ids, mask = pad_left([[5], [6, 7, 8]], 0)
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)


def test_padding_on_the_right_begins_every_row_at_the_first_column() -> None:
    ids, mask = pad_right([[5], [6, 7, 8]], 9)
    assert ids.tolist() == [[5, 9, 9], [6, 7, 8]]
    assert mask.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.int64)
    weights, _ = pad_right([[0.5], [0.0, 0.25]], 0.0)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [[0.5, 0.0], [0.0, 0.25]]


def test_labels_are_the_answers_alone() -> None:
    batch = padded([([1, 2], [3]), ([4], [5, 6, 7])], 0)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 3, -100], [-100, 5, 6, 7]]
