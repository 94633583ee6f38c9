"""How far the frozen neurons are those that the forget set uses, counted by hand. The command: tests/cli."""

from __future__ import annotations

import pytest
import torch

from skillweave.methods.cku.neurons.score import frozen_overlap


def test_the_share_is_of_the_frozen_and_chance_is_their_part_of_the_layer() -> None:
    forget = {3: torch.tensor([9.0, 1.0, 8.0, 2.0, 7.0]), 4: torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])}
    frozen = {3: torch.tensor([True, True, True, False, False]), 4: torch.tensor([True, False, False, False, False])}
    found = frozen_overlap(forget, frozen)
    assert found[3] == {"share": pytest.approx(2 / 3), "chance": pytest.approx(0.6)}  # 0 and 2 of 0, 1 and 2
    assert found[4] == {"share": 0.0, "chance": pytest.approx(0.2)}


def test_all_frozen_overlap_wholly_and_none_frozen_have_no_share() -> None:
    forget = {0: torch.rand(7, generator=torch.Generator().manual_seed(0))}
    assert frozen_overlap(forget, {0: torch.ones(7, dtype=torch.bool)})[0] == {"share": 1.0, "chance": 1.0}
    assert frozen_overlap(forget, {0: torch.zeros(7, dtype=torch.bool)})[0] == {"share": None, "chance": 0.0}
