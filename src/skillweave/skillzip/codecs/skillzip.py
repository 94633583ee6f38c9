"""SkillZip: low rank, allocated ranks, rotation, smoothing, integers.

The order is the paper's ([digest] in methods/skillweave.md, Stage 2 steps 2 to 4); the allocation of ranks is ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from skillweave.errors import UserError
from skillweave.pack import LowRankEntry, pack_int4, quantise_rows
from skillweave.pack.left_out import MOST_LEFT_OUT
from skillweave.progress import bar
from skillweave.skillzip.allocate import Matrix, allocate_all, main_ones
from skillweave.skillzip.job import Job, Written
from skillweave.skillzip.lowrank import Decomposed, balanced, decompose, root, shrink
from skillweave.skillzip.rotation import rotation
from skillweave.skillzip.smoothing import smoothing_scale

_MOMENT_BYTES = 2**30
"""Second moments held at a time; where all of them take more, the calibration set goes through the base again."""
_RANK_ROOM = 4
"""No matrix is offered more than this many times the rank that an even split would give it."""
_RANK_DIGITS = 5
"""Bytes of one more rank in the list of a stack."""
_FIT_ROUNDS = 4
"""Tries, from the first pack that fits on, to leave fewer bytes unused."""


def skillzip(job: Job) -> Written:
    """Every matrix at the rank that the budget gives it, in integers."""
    decomposed, largest = _decompose_all(job)
    chosen = _fit(job, decomposed, set(largest))
    tensors: dict[str, torch.Tensor] = {}
    with bar("writing integers", len(chosen)) as advance:
        for group, members in job.plan.groups.items():
            members = [name for name in members if name in chosen]
            _write_group(job, group, members, chosen, decomposed, largest.get(group), tensors)
            advance(len(members))
    return Written(dict(chosen), tensors)


def _decompose_all(job: Job) -> tuple[dict[str, Decomposed], dict[str, torch.Tensor]]:
    """The leading directions of each matrix, and the largest inputs of each group where they were asked for."""
    config = job.config
    rank_room = _rank_room(job)
    decomposed: dict[str, Decomposed] = {}
    largest: dict[str, torch.Tensor] = {}
    with bar("low rank", len(job.shapes)) as advance:
        for groups in _moment_batches(job):
            moments = job.moments(groups) if config.needs_calibration else {}
            for group in groups:
                if config.needs_calibration and group in job.plan.modules and group not in moments:
                    raise UserError(
                        f"no calibration prompt reached the layers {group}: set activation_aware=false and "
                        "smoothing=null, or calibrate on prompts that use them"
                    )
                weight = None
                if group in moments:
                    largest[group] = moments[group].largest
                if config.activation_aware and group in moments:
                    weight = root(shrink(moments[group].second, config.shrink))
                for name in job.plan.groups[group]:
                    decomposed[name] = decompose(job.read(name), rank_room, weight)
                    advance()
    return decomposed, largest


def _moment_batches(job: Job) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for group, members in job.plan.groups.items():
        need = 4 * job.shapes[members[0]][1] ** 2
        if batch and held + need > _MOMENT_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(group)
        held += need
    if batch:
        yield batch


def _rank_room(job: Job) -> int:
    a_rank_of_all = sum((out + in_) * job.config.bits / 8 for out, in_ in job.shapes.values())
    return max(16, _RANK_ROOM * int(job.budget / a_rank_of_all))


def _fit(job: Job, decomposed: dict[str, Decomposed], smoothed: set[str]) -> dict[str, LowRankEntry]:
    """Entries with the ranks of :func:`allocate`, whose pack, weighed exactly, fits the budget."""
    if not any(found.energy > 0 for found in decomposed.values()):
        if job.card.entries:
            return {}
        raise UserError(f"the delta of '{job.card.name}' is zero in every matrix: there is nothing to zip")
    group_of = {name: group for group, members in job.plan.groups.items() for name in members}

    def entry(name: str, rank: int) -> LowRankEntry:
        piece = job.plan.pieces[name]
        return LowRankEntry(
            shape=piece.entry_shape,
            rank=rank,
            bits=job.config.bits,
            group=group_of[name],
            smooth=smoothing(name),
            transposed=piece.transposed,
        )

    def overhead(name: str, step: int, rank_bytes: float) -> int:
        """Bytes of a matrix beside its ranks: those of its entry, and of its share of what is stored once."""
        fixed = room - job.free_bytes({name: entry(name, step)}) - round(step * rank_bytes)
        shared = len(job.plan.groups[group_of[name]])
        if job.plan.pieces[name].index is not None:
            rows = 2 * job.shapes[name][0]  # the scales of its rows; all else is the whole stack's
            return rows + max(fixed - rows * shared, 0) // shared + _RANK_DIGITS
        if smoothing(name):
            fixed -= 2 * job.shapes[name][1] * (shared - 1) // shared
        return fixed

    def smoothing(name: str) -> bool:
        return job.config.smoothing is not None and group_of[name] in smoothed

    room = job.free_bytes({})
    overheads: dict[tuple, int] = {}
    matrices = []
    for name, (out, in_) in job.shapes.items():
        step = min(2 if job.config.bits == 4 else 1, out, in_)
        rank_bytes = (out + in_) * job.config.bits / 8 + 2
        # Matrices of one kind cost the same; weighing a pack for each of thousands of experts would take minutes.
        piece = job.plan.pieces[name]
        alike: tuple = (piece.stored, piece.transposed, len(name), len(group_of[name]), smoothing(name))
        if piece.index is not None:
            alike = (piece.tensor,)
        if alike not in overheads:
            overheads[alike] = overhead(name, step, rank_bytes)
        matrices.append(Matrix(decomposed[name].gains, rank_bytes, overheads[alike], step))
    energies = [decomposed[name].energy for name in job.shapes]
    best: dict[str, LowRankEntry] = {}
    least_free, misses, rounds = 0, 0, 0
    # Names and digits make the bytes of many matrices a little other than the sum of each: weigh, correct, again.
    # Until something fits, each miss takes off more than it was over by, so this ends.
    while rounds < _FIT_ROUNDS:
        ranks = zip(job.shapes, allocate_all(matrices, energies, room), strict=True)
        chosen = {name: entry(name, rank) for name, rank in ranks if rank}
        if not chosen:
            break
        free = job.free_bytes(chosen)
        if free >= 0 and (not best or free < least_free):
            best, least_free = chosen, free
        misses += free < 0
        rounds += bool(best)
        room += free * misses if free < 0 else free
    kept = sum(energy for name, energy in zip(job.shapes, energies, strict=True) if name in best)
    if best and (job.config.allow_left_out or kept >= (1 - MOST_LEFT_OUT) * sum(energies)):
        return best
    keys = list(job.shapes)
    if job.config.allow_left_out:
        smallest = min(range(len(keys)), key=lambda at: sum(job.shapes[keys[at]]))
        raise job.refuse({keys[smallest]: entry(keys[smallest], matrices[smallest].step)})
    # Ranks of the least size for what must not be left out: the search above can pass them by.
    least = {keys[at]: entry(keys[at], matrices[at].step) for at in main_ones(energies)}
    if job.free_bytes(least) >= 0:
        return least
    raise job.refuse(least)


def _write_group(
    job: Job,
    group: str,
    members: list[str],
    chosen: dict[str, LowRankEntry],
    decomposed: dict[str, Decomposed],
    largest: torch.Tensor | None,
    tensors: dict[str, torch.Tensor],
) -> None:
    """The integer factors of the matrices that share an input, and their smoothing."""
    pairs = {}
    for name in members:
        rank = chosen[name].rank
        left, right = balanced(decomposed[name].U[:, :rank], job.read(name))
        if job.config.rotate:
            turn = rotation(rank, job.config.seed).float()
            left, right = left @ turn, turn.T @ right
        pairs[name] = (left, right)
    if members and job.config.smoothing is not None and largest is not None:
        b_max = torch.stack([right.abs().amax(dim=0) for _, right in pairs.values()]).amax(dim=0)
        smooth = smoothing_scale(largest, b_max, job.config.smoothing)
        tensors[f"{group}.smooth"] = smooth
        pairs = {name: (left, right * smooth.float()) for name, (left, right) in pairs.items()}
    for name, (left, right) in pairs.items():
        for part, factor in zip("AB", scaled_alike(left, right), strict=True):
            codes, scale = quantise_rows(factor, job.config.bits)
            tensors[f"{name}.{part}"] = pack_int4(codes) if job.config.bits == 4 else codes
            tensors[f"{name}.{part}_scale"] = scale


def scaled_alike(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """c A and B / c, so that the largest numbers of both are alike and float16 scales keep their precision."""
    ratio = right.abs().max() / left.abs().max().clamp(min=torch.finfo(left.dtype).tiny)
    c = ratio.sqrt() if float(ratio) > 0 else torch.ones(())
    return left * c, right / c
