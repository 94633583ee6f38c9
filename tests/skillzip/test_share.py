"""The split of bytes over packs loses the least, against a search of all splits, and on the edges."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from skillweave.skillzip.share import Curve, split


def power_law(scale: float, exponent: float, ends: tuple[int, ...]) -> Curve:
    return Curve(tuple((nbytes, scale * nbytes**-exponent) for nbytes in ends))


@pytest.mark.parametrize("seed", range(4))
def test_no_split_of_a_fine_grid_loses_less(seed: int) -> None:
    draw = random.Random(seed)
    curves = [
        power_law(10 ** draw.uniform(0, 3), draw.uniform(0.3, 2.5), (draw.randrange(20, 60), 200, 400))
        for _ in range(3)
    ]
    total = draw.randrange(250, 700)
    shares = split(curves, total)
    assert total - 3 <= sum(shares) <= total

    table = [[curve.loss(nbytes) for nbytes in range(total + 1)] for curve in curves]

    def loss(wanted: Sequence[int]) -> float:
        return sum(losses[share] for losses, share in zip(table, wanted, strict=True))

    grid = (
        (one, two, total - one - two)
        for one, two in itertools.product(range(curves[0].least, 401, 3), range(curves[1].least, 401, 3))
        if total - one - two >= curves[2].least
    )
    # Three bytes may be lost to rounding, which is worth little of the loss.
    assert loss(shares) <= min(map(loss, grid)) * 1.01


def test_power_laws_are_split_as_the_closed_form_says() -> None:
    """For c_k b^-p, equal slopes mean shares in proportion to c_k^(1/(p+1))."""
    ends = (100, 1_000, 10_000, 100_000)
    shares = split([power_law(scale, 1.0, ends) for scale in (1.0, 4.0, 9.0)], 60_000)
    assert shares == pytest.approx([10_000, 20_000, 30_000], rel=0.05)


def test_equal_curves_get_equal_bytes() -> None:
    shares = split([power_law(5.0, 1.0, (100, 400, 1_600))] * 3, 2_000)
    assert shares == [666, 666, 666]


def test_one_pack_gets_everything_also_beyond_its_curve() -> None:
    curve = power_law(5.0, 1.0, (100, 400))
    assert split([curve], 300) == [300]
    assert split([curve], 1_000) == [1_000]
    assert split([], 1_000) == []


def test_a_pack_that_loses_nothing_gets_its_least_bytes() -> None:
    zero, other = Curve(((50, 0.0), (500, 0.0))), power_law(5.0, 1.0, (100, 400, 1_600))
    assert split([zero, other], 1_000) == [50, 950]
    assert split([Curve(((50, 0.3),)), other], 1_000) == [50, 950]


def test_a_point_that_measured_worse_than_a_smaller_pack_does_not_attract_bytes() -> None:
    bump = Curve(((100, 1.0), (200, 1.5), (400, 1.2)))
    assert split([bump, power_law(5.0, 1.0, (100, 400, 1_600))], 500) == [100, 400]
    dent = Curve(((100, 1.0), (200, 1.5), (400, 0.2)))
    assert dent.loss(200) < 1.0  # on the hull


def test_bytes_that_no_curve_needs_are_shared_in_proportion() -> None:
    shares = split([power_law(1.0, 1.0, (100, 200)), power_law(1.0, 1.0, (100, 400))], 1_200)
    assert shares == [400, 800]


def test_the_least_bytes_must_fit() -> None:
    curves = [power_law(1.0, 1.0, (300, 600)), power_law(9.0, 1.0, (200, 600))]
    assert split(curves, 500) == [300, 200]
    with pytest.raises(ValueError, match="need 500 bytes together, and there are 499"):
        split(curves, 499)


def test_the_loss_between_and_beyond_the_points() -> None:
    curve = power_law(6.0, 1.5, (100, 800))
    assert curve.loss(300) == pytest.approx(6.0 * 300**-1.5, rel=0.01)
    assert curve.loss(50) == curve.loss(100) == 6.0 * 100**-1.5
    assert curve.loss(900) == curve.loss(800) == pytest.approx(6.0 * 800**-1.5)
