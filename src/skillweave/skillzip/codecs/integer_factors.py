"""The codec ``skillzip``: low-rank factors with allocated ranks, rotated and smoothed, as integers.

The order of the steps is the paper's ([digest], see docs/explanation/skillzip.md); the allocation of ranks is [ours].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from skillweave.errors import UserError
from skillweave.pack import LowRankEntry, stored_rows
from skillweave.progress import bar, console, share_of
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.draft import Draft, Encoded
from skillweave.skillzip.fit import fit
from skillweave.skillzip.fit_coded import fit_coded
from skillweave.skillzip.lowrank import Decomposed, balanced, decompose, root, shrink
from skillweave.skillzip.rotation import rotation
from skillweave.skillzip.smoothing import smoothing_scale
from skillweave.skillzip.source import MatrixSource
from skillweave.skillzip.steps import Chosen, coded_factors
from skillweave.units import human_bytes

_USUAL_BITS = 2
"""About as many bits has a code whose width is fitted to its direction."""
_RANK_ROOM = 4
"""No matrix is decomposed to more than this many times the rank that an even split of the budget would give it."""


def integer_factors(config: ZipConfig, source: MatrixSource, draft: Draft) -> Encoded:
    """Return the integer factors of every matrix, at the rank that the budget gives it.

    Raises :class:`UserError` if the delta is zero everywhere, or the budget cannot hold it.
    """
    decomposed, largest_inputs = _decompose_all(config, source, draft.budget)
    if not any(decomposed[key].energy > 0 for key in source.plan.pieces):
        if draft.card.entries:
            return Encoded({}, {})
        raise UserError(f"the delta of '{draft.card.name}' is zero in every matrix: there is nothing to zip")
    if config.scales == "rank":
        group_of = {key: group for group, members in source.plan.groups.items() for key in members}
        return fit_coded(
            config,
            draft,
            decomposed,
            lambda chosen: _coded(config, source, group_of, chosen, decomposed, largest_inputs),
        )
    entries = fit(config, draft, decomposed, set(largest_inputs))
    tensors: dict[str, torch.Tensor] = {}
    with bar("writing integers", len(entries)) as advance:
        for group, members in source.plan.groups.items():
            chosen = {key: entries[key] for key in members if key in entries}
            tensors |= _encode_group(config, source, group, chosen, decomposed, largest_inputs.get(group))
            advance(len(chosen))
    return Encoded(entries, tensors)


def _coded(
    config: ZipConfig,
    source: MatrixSource,
    group_of: Mapping[str, str],
    chosen: Mapping[str, Chosen],
    decomposed: Mapping[str, Decomposed],
    largest_inputs: Mapping[str, torch.Tensor],
) -> Encoded:
    """Return the chosen directions of every matrix with one scale for each rank."""
    entries: dict[str, LowRankEntry] = {}
    tensors: dict[str, torch.Tensor] = {}
    with bar("writing integers", len(chosen)) as advance:
        for group, members in source.plan.groups.items():
            kept = {key: chosen[key] for key in members if key in chosen}
            factors = {
                key: _factors(config, source.matrix(key), decomposed[key].U[:, : one.rank]) for key, one in kept.items()
            }
            smooth = _smooth(config, [right for _, right in factors.values()], largest_inputs.get(group))
            if smooth is not None:
                tensors[f"{group}.smooth"] = smooth
            for key, one in kept.items():
                left, right = factors.pop(key)
                matrix = source.matrix(key)
                if smooth is not None:
                    matrix, right = matrix * smooth.float(), right * smooth.float()
                # The fit of A makes the plain error small, not the weighted one.
                parts = coded_factors(matrix, (left, right), one, fit_left=not config.activation_aware)
                tensors[f"{key}.A"], tensors[f"{key}.B"], tensors[f"{key}.B_scale"] = parts
                piece = source.plan.pieces[key]
                entries[key] = LowRankEntry(
                    shape=piece.entry_shape,
                    rank=one.rank,
                    bits=8,
                    scales="rank",
                    group=group_of[key],
                    smooth=smooth is not None,
                    transposed=piece.transposed,
                )
                advance()
    return Encoded(entries, tensors)


def _smooth(
    config: ZipConfig, rights: Sequence[torch.Tensor], largest_inputs: torch.Tensor | None
) -> torch.Tensor | None:
    """Return the smoothing that the matrices of a group share, or None."""
    if not rights or config.smoothing is None or largest_inputs is None:
        return None
    largest_columns = torch.stack([right.abs().amax(dim=0) for right in rights]).amax(dim=0)
    return smoothing_scale(largest_inputs, largest_columns, config.smoothing)


def _decompose_all(
    config: ZipConfig, source: MatrixSource, budget: int
) -> tuple[Mapping[str, Decomposed], dict[str, torch.Tensor]]:
    """Return the leading directions of each matrix, and the largest inputs (in,) of each group that was calibrated.

    What an earlier run left in the source's store is not made again.
    """
    max_rank = _max_rank(config, source, budget)
    store = source.decompositions
    largest: dict[str, torch.Tensor] = {}
    sizes = {key: 2 * out * in_ for key, (out, in_) in source.shapes.items()}
    if found := sum(key in store for key in sizes):
        console.print(f"  {share_of(found, len(sizes), 'matrices')} were decomposed by an earlier run")
    with bar("low rank", sum(sizes.values()), in_bytes=True) as advance:
        for groups in source.moment_batches():
            undone = [group for group in groups if not _is_done(config, source, group)]
            moments = source.moments(undone) if config.needs_calibration else {}
            for group in groups:
                weight = None
                if group in moments:
                    store.put_largest_inputs(group, moments[group].largest)
                if (inputs := store.largest_inputs(group)) is not None:
                    largest[group] = inputs
                if config.activation_aware and group in moments:
                    weight = root(shrink(moments[group].second, config.shrink))
                for key in source.plan.groups[group]:
                    advance(0, note=f"{key}, {human_bytes(sizes[key])}")
                    if key not in store:
                        store.put(key, decompose(source.matrix(key), max_rank, weight))
                    advance(sizes[key])
        advance(0, note=f"{len(sizes)} matrices, {human_bytes(sum(sizes.values()))}")
    return store, largest


def _is_done(config: ZipConfig, source: MatrixSource, group: str) -> bool:
    """Return whether the store holds all that is computed for a group."""
    watched = config.needs_calibration and group in source.plan.modules
    if watched and source.decompositions.largest_inputs(group) is None:
        return False
    return all(key in source.decompositions for key in source.plan.groups[group])


def _max_rank(config: ZipConfig, source: MatrixSource, budget: int) -> int:
    one_rank_of_all = sum((out + in_) * (config.bits or _USUAL_BITS) / 8 for out, in_ in source.shapes.values())
    return max(16, _RANK_ROOM * int(budget / one_rank_of_all))


def _encode_group(
    config: ZipConfig,
    source: MatrixSource,
    group: str,
    entries: Mapping[str, LowRankEntry],
    decomposed: Mapping[str, Decomposed],
    largest_inputs: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Return the integer factors of the matrices of one group, and the smoothing that they share."""
    tensors: dict[str, torch.Tensor] = {}
    factors = {key: _factors(config, source.matrix(key), decomposed[key].U[:, : e.rank]) for key, e in entries.items()}
    smooth = _smooth(config, [right for _, right in factors.values()], largest_inputs)
    if smooth is not None:
        tensors[f"{group}.smooth"] = smooth
        factors = {key: (left, right * smooth.float()) for key, (left, right) in factors.items()}
    for key, (left, right) in factors.items():
        for part, factor in zip("AB", _balanced_magnitudes(left, right), strict=True):
            tensors[f"{key}.{part}"], tensors[f"{key}.{part}_scale"] = stored_rows(factor, config.bits or 4)
    return tensors


def _factors(config: ZipConfig, matrix: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (out, r) and B (r, in) in float32; they are rotated along the rank only if all codes have one width."""
    left, right = balanced(u, matrix)
    if config.rotate and (config.bits is not None or config.scales == "row"):
        turn = rotation(u.shape[1], config.seed).float()
        left, right = left @ turn, turn.T @ right
    return left, right


def _balanced_magnitudes(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return c A and B / c with equal largest magnitudes, so that the float16 scales of both keep their precision."""
    ratio = right.abs().max() / left.abs().max().clamp(min=torch.finfo(left.dtype).tiny)
    c = ratio.sqrt() if float(ratio) > 0 else torch.ones(())
    return left * c, right / c
