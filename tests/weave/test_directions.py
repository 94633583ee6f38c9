from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from skillweave.weave.directions import Geometry, enough_cosine


@pytest.mark.parametrize(("background", "width"), [(30, 80), (200, 20)])
def test_cosines_are_those_in_the_space_in_which_the_background_is_round(background: int, width: int) -> None:
    """The reference makes the whole covariance and its inverse root."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(20 + background, width, generator=source) * torch.linspace(4, 0.5, width)
    x[:10, 3] += 5
    x[10:20, 7] -= 3
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * background)
    got = Geometry.of(x, labels, 2).cosines(x)

    z = x.double().numpy()
    z = (z - z[20:].mean(0)) / z.std(0)
    values, vectors = np.linalg.eigh(ledoit_wolf(z[20:], assume_centered=True)[0])
    white = z @ (vectors / np.sqrt(values)) @ vectors.T
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    means = np.stack([white[:10].mean(0), white[10:20].mean(0)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(got.numpy(), white @ means.T, atol=2e-4)


def test_a_background_without_spread_damps_nothing() -> None:
    x = torch.cat([torch.eye(4)[:1].expand(3, 4), torch.zeros(2, 4)])
    found = Geometry.of(x, torch.tensor([0, 0, 0, 1, 1]), 1)
    assert not found.basis.any()
    torch.testing.assert_close(found.cosines(torch.eye(4)[:2])[:, 0], torch.tensor([1.0, 0.0]))


def test_the_asked_shares_of_background_and_of_foreign_prompts_stray() -> None:
    source = torch.Generator().manual_seed(0)
    unseen = 0.5 * torch.rand(600, 2, generator=source)
    labels = torch.tensor([0] * 100 + [1] * 100 + [2] * 400)
    unseen[torch.arange(200), labels[:200]] += 0.5
    unseen[200:] *= 0.5
    foreign = unseen[torch.arange(200), 1 - labels[:200]]
    for stray in (0.02, 0.1):
        enough = enough_cosine(unseen, labels, stray, 0.01)
        assert int((foreign > enough).sum()) == round(stray * 200) - 1
        assert int((unseen[200:].amax(-1) > enough).sum()) == 0
        alone = enough_cosine(unseen[:, :1][labels != 1], (labels[labels != 1] > 0).long(), stray, 0.01)
        assert int((unseen[200:, 0] > alone).sum()) == round(stray * 400) - 1
    # Few prompts cannot tell what 2% is: then none of them may stray.
    few = torch.tensor([0] * 5 + [1] * 20)
    assert enough_cosine(unseen[195:220, 1:], few, 0.02, 0.01) == pytest.approx(float(unseen[200:220, 1].max()))


def test_own_prompts_come_before_strays() -> None:
    own, other = torch.linspace(0.1, 0.5, 200), torch.linspace(0.0, 0.9, 50)
    unseen = torch.cat([own, other])[:, None]
    enough = enough_cosine(unseen, torch.tensor([0] * 200 + [1] * 50), 0.02, 0.01)
    assert int((own < enough).sum()) == 1  # of 200, 1% with the n + 1 of conformal prediction
    assert enough_cosine(-unseen, torch.tensor([0] * 200 + [1] * 50), 0.02, 0.01) == 0.0
