"""Long jobs in pieces: kept, resumed, shared by processes, to the same file."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from skillweave.base.batching import by_length
from skillweave.methods.training.pieces import in_pieces, read_lines
from skillweave.methods.training.processes import Processes

LENGTHS = [3, 9, 1, 9, 4, 4, 7]


class Threads(Processes):
    """A process group of threads: the same promises, without torch."""

    class Group:
        def __init__(self, world: int):
            self.barrier = threading.Barrier(world, timeout=120)
            self.value = None

    def __init__(self, rank: int, world: int, group: Group):
        super().__init__(rank, world)
        object.__setattr__(self, "group", group)

    def wait(self) -> None:
        self.group.barrier.wait()

    def from_first(self, make):
        if self.first:
            self.group.value = make()
        self.wait()
        value = self.group.value
        self.wait()
        return value


def job(size: int = 2, stop_at: int | None = None):
    """A job that notes which pieces were worked on."""
    done: list[int] = []

    def prepare():
        def work(number, piece):
            if number == stop_at:
                raise KeyboardInterrupt
            done.append(number)
            return [{"row": index, "says": "ü\u2028\n" * index} for index in piece]

        return by_length(LENGTHS, size), work

    return prepare, done


def never():
    raise AssertionError("prepared again")


def run(path, prepare, processes=None, **more):
    return in_pieces(path, prepare, processes=processes or Processes(), label="job", trace=False, **more)


def test_rows_come_back_in_the_order_of_their_indices_and_are_kept(tmp_path):
    path = tmp_path / "a" / "rows.jsonl"
    prepare, done = job()
    rows = run(path, prepare)
    assert rows == [{"row": index, "says": "ü\u2028\n" * index} for index in range(7)]
    assert done == [0, 1, 2, 3]
    assert read_lines(path) == rows
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]
    assert run(path, never) == rows


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_size_of_pieces_makes_no_difference_to_the_order(tmp_path, size):
    prepare, done = job(size)
    assert [row["row"] for row in run(tmp_path / "rows.jsonl", prepare)] == list(range(7))
    assert len(done) == -(-7 // size)


def test_no_rows_make_an_empty_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert run(path, lambda: ([], never), note=lambda rows: f"{len(rows)}") == []
    assert path.read_text() == ""
    assert run(path, never) == []


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_a_broken_job_goes_on_with_the_piece_it_broke_in(tmp_path, stop_at):
    path = tmp_path / "rows.jsonl"
    prepare, done = job(stop_at=stop_at)
    with pytest.raises(KeyboardInterrupt):
        run(path, prepare)
    assert not path.exists()
    again, rest = job()
    rows = run(path, again)
    assert (done, rest) == (list(range(stop_at)), list(range(stop_at, 4)))
    whole, _ = job()
    assert rows == run(tmp_path / "whole.jsonl", whole)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "rows.parts").exists()


def test_a_kill_while_the_whole_file_is_written_costs_no_piece(tmp_path, monkeypatch):
    from skillweave.methods.training import pieces

    path = tmp_path / "rows.jsonl"
    write = pieces.write_json_lines

    def breaks(target, text):
        if target == path:
            raise KeyboardInterrupt
        write(target, text)

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "write_json_lines", breaks)
        with pytest.raises(KeyboardInterrupt):
            run(path, job()[0])
    again, rest = job()
    assert len(run(path, again)) == 7
    assert rest == []


def test_the_note_has_seen_all_rows_so_far_also_those_of_before(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "rows.jsonl", job(stop_at=2)[0])
    seen = []
    run(tmp_path / "rows.jsonl", job()[0], note=lambda rows: seen.append(len(rows)) or f"{len(rows)} rows")
    assert seen == [2, 4, 6, 7]
    assert capsys.readouterr().err == ""


def test_a_trace_is_one_line(tmp_path, capsys):
    in_pieces(tmp_path / "r.jsonl", job()[0], processes=Processes(), label="job", note=lambda rows: f"{len(rows)} rows")
    assert capsys.readouterr().err.split() == ["job:", "7", "rows"]


@pytest.mark.parametrize(("size", "world"), [(2, 2), (2, 3), (7, 3), (1, 2)])
def test_processes_share_the_pieces_and_all_get_all_rows(tmp_path, size, world):
    alone, _ = job(size)
    expected = run(tmp_path / "alone.jsonl", alone)
    group, jobs = Threads.Group(world), [job(size) for _ in range(world)]
    path = tmp_path / "shared.jsonl"
    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(lambda rank: run(path, jobs[rank][0], Threads(rank, world, group)), range(world)))
    assert found == [expected] * world
    count = len(by_length(LENGTHS, size))
    assert [done for _, done in jobs] == [list(range(rank, count, world)) for rank in range(world)]
    assert path.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert not (tmp_path / "shared.parts").exists()


def test_a_job_begun_by_one_process_is_finished_by_two(tmp_path):
    path, group = tmp_path / "rows.jsonl", Threads.Group(2)
    with pytest.raises(KeyboardInterrupt):
        run(path, job(stop_at=1)[0])
    jobs = [job() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda rank: run(path, jobs[rank][0], Threads(rank, 2, group)), range(2)))
    assert [done for _, done in jobs] == [[2], [1, 3]]
    assert [row["row"] for row in found[1]] == list(range(7))
