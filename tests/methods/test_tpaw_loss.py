"""TPAW's losses against slow loops in plain Python, and the trainer that takes them."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from micro import micro_model, micro_tokenizer
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.methods import TpawConfig
from skillweave.methods.tpaw import dpo_loss, spin_loss, team_loss, tspin_loss
from skillweave.methods.tpaw.trainer import TeamTrainer, collate, objective, summary
from skillweave.methods.training import Processes, TrainingSettings
from skillweave.methods.training.trainer import trainer_arguments

LAM, ETA, GAMMA = 0.3, 6.0, 0.5
LN2 = math.log(2)
SOFT = 1e-8
"""torch's softplus leaves out what is below e^-20."""


def drawn(players: int, pairs: int, *, seed: int = 0, spread: float = 4.0) -> list[torch.Tensor]:
    """Log-probabilities in float64: policy's of targets and generations (B,), players' of both (P, B)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(pairs,), (pairs,), (players, pairs), (players, pairs)]
    return [-20 + spread * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def softened(margin: float) -> float:
    """log(1 + e^-margin), written so that neither side overflows."""
    return max(0.0, -margin) + math.log1p(math.exp(-abs(margin)))


def slow_weights(target, generated, player_target, player_generated, eta=ETA, gamma=GAMMA, lam=LAM):
    """alpha and beta of one pair: lists over the players."""
    alpha, strength = [], []
    for of_target, of_generated in zip(player_target, player_generated, strict=True):
        gained, given = lam * (target - of_target), lam * (generated - of_generated)
        alpha.append(eta if gained <= 0 else 1.0)
        strength.append(math.exp(-gamma * (gained - given)))
    return alpha, [one / sum(strength) for one in strength]


def slow_loss(target, generated, player_target, player_generated, alpha, beta, lam=LAM) -> float:
    """The team's loss of one pair, its weights given."""
    players = zip(player_target, player_generated, alpha, beta, strict=True)
    return sum(b * softened(a * lam * (target - t) - lam * (generated - g)) for t, g, a, b in players)


def slope(loss, at: float, step: float = 1e-5) -> float:
    return (loss(at + step) - loss(at - step)) / (2 * step)


def columns(four: list[torch.Tensor]):
    """Pair by pair: floats of the policy, lists over the players."""
    target, generated, player_target, player_generated = (tensor.tolist() for tensor in four)
    for pair in range(len(target)):
        yield (
            target[pair],
            generated[pair],
            [row[pair] for row in player_target],
            [row[pair] for row in player_generated],
        )


def with_gradient(loss, four, **settings):
    leaves = [tensor.clone().requires_grad_() for tensor in four[:2]]
    values, statistics = loss(*leaves, *four[2:], **settings)
    return values, statistics, torch.autograd.grad(values.sum(), leaves)


@pytest.mark.parametrize(("players", "pairs"), [(1, 1), (1, 7), (2, 5), (3, 1), (3, 40)])
def test_team_loss_and_gradient_against_a_slow_loop(players, pairs):
    four = drawn(players, pairs)
    values, statistics, gradients = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    assert values.shape == (pairs,)
    for at, column in enumerate(columns(four)):
        alpha, beta = slow_weights(*column)
        assert values[at].item() == pytest.approx(slow_loss(*column, alpha, beta), abs=SOFT)
        assert statistics["alpha"][:, at].tolist() == alpha
        assert statistics["beta"][:, at].tolist() == pytest.approx(beta, rel=1e-12)
        target, generated, *rest = column
        by_target = slope(lambda value, g=generated, r=rest, w=(alpha, beta): slow_loss(value, g, *r, *w), target)
        by_generated = slope(lambda value, t=target, r=rest, w=(alpha, beta): slow_loss(t, value, *r, *w), generated)
        assert gradients[0][at].item() == pytest.approx(by_target, abs=SOFT)
        assert gradients[1][at].item() == pytest.approx(by_generated, abs=SOFT)


@pytest.mark.parametrize("loss", [spin_loss, dpo_loss])
def test_spin_and_dpo_against_a_slow_loop(loss):
    four = drawn(1, 12)
    values, statistics, gradients = with_gradient(loss, four, lam=LAM)
    for at, (target, generated, (of_target,), (of_generated,)) in enumerate(columns(four)):
        margin = LAM * ((target - of_target) - (generated - of_generated))
        pull = LAM / (1 + math.exp(margin))
        assert values[at].item() == pytest.approx(softened(margin), abs=SOFT)
        assert gradients[0][at].item() == pytest.approx(-pull, abs=SOFT)
        assert gradients[1][at].item() == pytest.approx(pull, abs=SOFT)
        assert statistics["target_reward"][0, at].item() == pytest.approx(LAM * (target - of_target))
        assert statistics["generated_reward"][0, at].item() == pytest.approx(LAM * (generated - of_generated))
    assert set(statistics) == {"target_reward", "generated_reward"}


def test_tspin_against_a_slow_loop():
    four = drawn(1, 12)
    first = drawn(1, 12, seed=9)[0].requires_grad_()
    leaves = [tensor.clone().requires_grad_() for tensor in four[:2]]
    values, _ = tspin_loss(*leaves, *four[2:], lam=LAM, policy_first=first)
    gradients = torch.autograd.grad(values.sum(), [*leaves, first])

    def slow(target: float, generated: float, begun: float) -> float:
        return softened(LAM * (target - generated)) + softened(LAM * (generated - begun))

    for at in range(12):
        three = [leaf[at].item() for leaf in (*leaves, first)]
        assert values[at].item() == pytest.approx(slow(*three), abs=SOFT)
        for which, gradient in enumerate(gradients):
            expected = slope(lambda value, w=which, t=three: slow(*t[:w], value, *t[w + 1 :]), three[which])
            assert gradient[at].item() == pytest.approx(expected, abs=SOFT)
    # Only the policy counts: other players, same loss.
    others = drawn(1, 12, seed=5)[2:]
    assert torch.equal(values, tspin_loss(*leaves, *others, lam=LAM, policy_first=first)[0])


def test_tspins_second_term_is_constant_where_the_first_answer_is_the_generation():
    four = drawn(1, 6)
    leaves = [tensor.clone().requires_grad_() for tensor in four[:2]]
    values, _ = tspin_loss(*leaves, *four[2:], lam=LAM, policy_first=leaves[1])
    now = torch.nn.functional.softplus(-LAM * (leaves[0] - leaves[1]))
    torch.testing.assert_close(values, now + LN2)
    for ours, alone in zip(
        torch.autograd.grad(values.sum(), leaves), torch.autograd.grad(now.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(ours, alone)


def test_at_a_target_as_likely_as_before_the_loss_is_continuous_and_its_slope_jumps_by_eta():
    base = torch.tensor([-7.0], dtype=torch.float64)
    generated, player = torch.tensor([-9.0], dtype=torch.float64), torch.tensor([[-7.0]], dtype=torch.float64)
    losses, slopes = [], []
    for shift in (-1e-9, 0.0, 1e-9):
        four = [base + shift, generated, player, generated[None]]
        values, statistics, (gradient, _) = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
        losses.append(values.item())
        slopes.append(gradient.item())
        assert statistics["alpha"].item() == (ETA if shift <= 0 else 1.0)
    assert losses == pytest.approx([LN2] * 3, abs=1e-8)
    # At zero itself the target counts as fallen behind.
    assert slopes == pytest.approx([-ETA * LAM / 2, -ETA * LAM / 2, -LAM / 2], rel=1e-6)


def test_as_a_round_begins_the_newest_player_pulls_with_eta_at_every_pair():
    four = drawn(1, 9)
    same = [four[0], four[1], four[0][None], four[1][None]]
    values, statistics, gradients = with_gradient(team_loss, same, lam=LAM, eta=ETA, gamma=GAMMA)
    assert (statistics["alpha"] == ETA).all()
    assert not statistics["target_reward"].any()
    torch.testing.assert_close(values, torch.full_like(values, LN2))
    torch.testing.assert_close(gradients[0], torch.full_like(values, -ETA * LAM / 2))
    torch.testing.assert_close(gradients[1], torch.full_like(values, LAM / 2))


def test_a_reward_within_the_tolerance_counts_as_none():
    policy, player = torch.tensor([-2.0, -2.0, -2.0]), torch.tensor([[-2.05, -2.15, -1.0]])
    for tolerance, raised in ((0.0, [1, 1, 6]), (0.1, [6, 1, 6]), (0.2, [6, 6, 6])):
        _, told = team_loss(policy, policy, player, player, lam=0.3, eta=6.0, gamma=0.5, tolerance=tolerance)
        assert told["alpha"].tolist() == [raised]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 50.0])
def test_one_player_and_eta_one_is_spin_to_the_bit(gamma):
    four = [tensor.float() for tensor in drawn(1, 20)]
    ours = with_gradient(team_loss, four, lam=LAM, eta=1.0, gamma=gamma)
    spin = with_gradient(spin_loss, four, lam=LAM)
    assert torch.equal(ours[0], spin[0])
    assert all(torch.equal(left, right) for left, right in zip(ours[2], spin[2], strict=True))
    assert (ours[1]["beta"] == 1).all()


def test_a_generation_that_is_the_target_gives_a_constant_and_no_gradient():
    answer = drawn(1, 5)[0].requires_grad_()
    player = drawn(1, 5, seed=1)[2]
    values, _ = spin_loss(answer, answer, player, player, lam=LAM)
    torch.testing.assert_close(values.detach(), torch.full((5,), LN2, dtype=torch.float64))
    assert not torch.autograd.grad(values.sum(), answer)[0].any()
    # With eta the two sides no longer cancel: this is why equal pairs are dropped.
    behind = player + 1 + answer.detach() - player.max()
    values, _ = team_loss(answer, answer, behind.abs(), behind.abs(), lam=LAM, eta=ETA, gamma=GAMMA)
    assert torch.autograd.grad(values.sum(), answer)[0].all()


def test_no_gradient_passes_through_the_weights():
    four = drawn(3, 11)
    _, statistics, gradients = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    assert not any(tensor.requires_grad for tensor in statistics.values())
    # The same loss, its weights put in as constants.
    leaves = [tensor.clone().requires_grad_() for tensor in four[:2]]
    margin = statistics["alpha"] * LAM * (leaves[0] - four[2]) - LAM * (leaves[1] - four[3])
    constant = -(statistics["beta"] * torch.nn.functional.logsigmoid(margin)).sum()
    for ours, expected in zip(gradients, torch.autograd.grad(constant, leaves), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_players_weights_do_not_depend_on_the_policy():
    """In the softmax over players all that the policy adds cancels: beta is a constant of the players and the pair.

    So to detach it changes no gradient, which the weights moving along confirm where no reward crosses zero.
    """
    four, other = drawn(3, 11), drawn(3, 11, seed=4)
    _, statistics, gradients = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    moved = team_loss(*other[:2], *four[2:], lam=LAM, eta=ETA, gamma=GAMMA)[1]["beta"]
    torch.testing.assert_close(moved, statistics["beta"])
    torch.testing.assert_close(moved, torch.softmax(GAMMA * LAM * (four[2] - four[3]), dim=0))
    for at, (target, *rest) in enumerate(columns(four)):
        by_target = slope(lambda value, r=rest: slow_loss(value, *r, *slow_weights(value, *r)), target)
        assert gradients[0][at].item() == pytest.approx(by_target, abs=SOFT)


def test_equal_players_share_the_weight_and_count_as_one():
    four = drawn(1, 8)
    one = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    three = with_gradient(
        team_loss, [*four[:2], four[2].expand(3, 8), four[3].expand(3, 8)], lam=LAM, eta=ETA, gamma=GAMMA
    )
    torch.testing.assert_close(three[1]["beta"], torch.full((3, 8), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(three[0], one[0])
    torch.testing.assert_close(three[2][0], one[2][0])


def test_without_gamma_all_players_weigh_alike_and_with_much_the_strongest_alone():
    four = drawn(3, 8)
    flat, statistics = team_loss(*four, lam=LAM, eta=ETA, gamma=0.0)
    torch.testing.assert_close(statistics["beta"], torch.full((3, 8), 1 / 3, dtype=torch.float64))
    alone = [team_loss(*four[:2], four[2][[j]], four[3][[j]], lam=LAM, eta=ETA, gamma=0.0)[0] for j in range(3)]
    torch.testing.assert_close(flat, torch.stack(alone).mean(dim=0))
    sharp, statistics = team_loss(*four, lam=LAM, eta=ETA, gamma=1e4)
    strongest = (statistics["target_reward"] - statistics["generated_reward"]).argmin(dim=0)
    torch.testing.assert_close(sharp, torch.stack(alone).gather(0, strongest[None])[0])


def test_the_order_of_the_players_makes_no_difference():
    four = drawn(3, 8)
    turned = [*four[:2], four[2][[2, 0, 1]], four[3][[2, 0, 1]]]
    ours, other = (with_gradient(team_loss, each, lam=LAM, eta=ETA, gamma=GAMMA) for each in (four, turned))
    torch.testing.assert_close(ours[0], other[0])
    torch.testing.assert_close(ours[2], other[2])
    torch.testing.assert_close(ours[1]["beta"][[2, 0, 1]], other[1]["beta"])


@pytest.mark.parametrize("far", [1e4, 1e6])
def test_extreme_log_probabilities_stay_finite_in_float32(far):
    sides = torch.cartesian_prod(*[torch.tensor([-far, far, 0.0])] * 4)
    players = torch.stack([sides[:, 2:], sides[:, 2:].flip(0), torch.zeros_like(sides[:, 2:])])
    four = [sides[:, 0], sides[:, 1], players[:, :, 0], players[:, :, 1]]
    one = [*four[:2], four[2][:1], four[3][:1]]
    for loss, inputs, settings in (
        (team_loss, four, {"eta": ETA, "gamma": GAMMA}),
        (spin_loss, one, {}),
        (tspin_loss, one, {"policy_first": four[2][0]}),
    ):
        values, statistics, gradients = with_gradient(loss, inputs, lam=LAM, **settings)
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert all(tensor.isfinite().all() for tensor in statistics.values())
    values = team_loss(*four, lam=LAM, eta=ETA, gamma=GAMMA)[0]
    for at, column in enumerate(columns(one)):
        # exp of the plain softmax overflows here: one player is held against alone.
        alone = team_loss(*[tensor[..., [at]] for tensor in one], lam=LAM, eta=ETA, gamma=GAMMA)[0].item()
        alpha = ETA if column[0] <= column[2][0] else 1.0
        assert alone == pytest.approx(slow_loss(*column, [alpha], [1.0]), rel=1e-5, abs=1e-6)
    assert values.max() > far


@pytest.mark.parametrize("loss", ["team", "spin", "tspin"])
def test_no_pairs_no_loss(loss):
    four = drawn(1, 0)
    values, statistics, gradients = with_gradient(
        {"team": team_loss, "spin": spin_loss, "tspin": tspin_loss}[loss], four, lam=LAM,
        **{"team": {"eta": ETA, "gamma": GAMMA}, "tspin": {"policy_first": four[0]}}.get(loss, {}),
    )  # fmt: skip
    assert values.shape == gradients[0].shape == (0,)
    assert all(tensor.shape == (1, 0) for tensor in statistics.values())


@pytest.mark.parametrize("where", range(4))
def test_a_nan_stays_in_its_pair(where):
    four = drawn(3, 6)
    clean = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    four[where][..., 2] = math.nan
    values, _, gradients = with_gradient(team_loss, four, lam=LAM, eta=ETA, gamma=GAMMA)
    rest = [0, 1, 3, 4, 5]
    assert values[2].isnan()
    assert torch.equal(values[rest], clean[0][rest])
    assert all(torch.equal(ours[rest], kept[rest]) for ours, kept in zip(gradients, clean[2], strict=True))


@pytest.mark.parametrize(
    ("which", "shape"),
    [(0, (5,)), (1, (5,)), (0, (4, 1)), (1, ()), (2, (4,)), (3, (4,)), (2, (2, 5)), (3, (3, 4)), (2, (1, 4)),
     (3, (2, 4, 1))],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(which, shape):
    four = drawn(2, 4)
    team_loss(*four, lam=LAM, eta=ETA, gamma=GAMMA)
    four[which] = torch.zeros(shape)
    with pytest.raises(ValueError, match="log-probabilities must both be"):
        team_loss(*four, lam=LAM, eta=ETA, gamma=GAMMA)
    with pytest.raises(ValueError, match="must both be"):
        tspin_loss(*four, lam=LAM, policy_first=torch.zeros(4))


@pytest.mark.parametrize("loss", [spin_loss, dpo_loss])
def test_spin_and_dpo_have_one_player(loss):
    with pytest.raises(ValueError, match="one player, not 2"):
        loss(*drawn(2, 4), lam=LAM)


# -- the settings and the trainer ------------------------------------------------------------------------------------


def test_the_settings_of_each_loss():
    def config(**given):
        return TpawConfig(task="x.jsonl", **given)

    assert (config().lam, config().eta, config().gamma) == (0.1, 6.0, 0.5)
    sizes = {loss: (config(loss=loss).players, config(loss=loss).remembered) for loss in
             ("team", "spin", "tspin", "dpo", "sft")}  # fmt: skip
    assert sizes == {"team": (3, 3), "spin": (1, 2), "tspin": (1, 1), "dpo": (1, 1), "sft": (1, 1)}
    assert (config(team=5, generations=1).players, config(team=5, generations=1).remembered) == (5, 1)
    for wrong, said in (
        ({"loss": "spin", "team": 2}, "has one player"),
        ({"loss": "dpo", "generations": 2}, "remove generations"),
        ({"loss": "tspin", "prompts_per_round": 5}, "remove prompts_per_round"),
        ({"team": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=said):
            config(**wrong)


@pytest.mark.parametrize("loss", ["team", "spin", "tspin", "dpo"])
def test_the_sides_of_a_batch_reach_their_place_in_the_loss(loss):
    players = 3 if loss == "team" else 1
    four, first = drawn(players, 5), drawn(1, 5, seed=2)[0]
    settings = {"lam": LAM, **({"eta": 2.0, "gamma": 3.0} if loss == "team" else {})}
    chosen = objective(TpawConfig(task="x.jsonl", loss=loss, **settings))
    sides = [*four[:2], first] if loss == "tspin" else four[:2]
    values, _ = chosen(torch.stack(sides), torch.stack(four[2:], dim=1))
    function = {"team": team_loss, "spin": spin_loss, "tspin": tspin_loss, "dpo": dpo_loss}[loss]
    expected, _ = function(*four, **settings, **({"policy_first": first} if loss == "tspin" else {}))
    assert torch.equal(values, expected)


def test_what_is_logged_of_the_statistics():
    four = drawn(3, 10)
    _, statistics = team_loss(*four, lam=LAM, eta=ETA, gamma=GAMMA)
    shown = summary(statistics)
    assert set(shown) | {"logps/target", "logps/generated", "padding"} == set(TeamTrainer.watched)
    target, generated = statistics["target_reward"], statistics["generated_reward"]
    # Of one player, the newest, so that it can be held beside a loss that has one.
    assert torch.equal(shown["rewards/target"], target[0])
    assert torch.equal(shown["rewards/generated"], generated[0])
    assert torch.equal(shown["rewards/margins"], target[0] - generated[0])
    wins = [float(t > g) for t, g in zip(target[0].tolist(), generated[0].tolist(), strict=True)]
    assert shown["rewards/accuracies"].tolist() == wins
    # Of all of them.
    assert torch.equal(shown["rewards/team_margins"], target - generated)
    assert shown["weights/alpha_raised"].mean().item() == pytest.approx(float((target <= 0).double().mean()))
    assert torch.equal(shown["weights/beta_newest"], statistics["beta"][0])
    for at, column in enumerate(columns(four)):
        _, beta = slow_weights(*column)
        assert shown["weights/beta_entropy"][at].item() == pytest.approx(-sum(b * math.log(b) for b in beta))
    # Without weights: alpha is 1, all players count alike; one player has no entropy.
    plain = summary({"target_reward": target, "generated_reward": generated})
    assert not plain["weights/alpha_raised"].any()
    torch.testing.assert_close(plain["weights/beta_entropy"], torch.full((10,), math.log(3), dtype=torch.float64))
    assert not summary(spin_loss(*drawn(1, 4), lam=LAM)[1])["weights/beta_entropy"].any()


def rows_of(tokenizer, players: int, sides: int = 2) -> list[dict]:
    """Pairs of many lengths; what the players think is made up."""
    rows = []
    for index in range(8):
        texts = [str(index) * (1 + 3 * index % 7), "ab" * (1 + index % 4), "x" * index][:sides]
        rows.append({
            "prompt": prompt_ids(tokenizer, f"say {index}" + " please" * (index % 3)),
            "sides": [answer_ids(tokenizer, text) for text in texts],
            "players": [[-20.0 - index - j, -25.0 + 2 * index - j] for j in range(players)],
        })  # fmt: skip
    return rows


def team_trainer(folder, rows, loss: str = "team", micro: int | None = None, steps: int = 4) -> TeamTrainer:
    settings = TrainingSettings(steps=steps, batch_size=4, learning_rate=1e-3, warmup=0.0, micro_batch_size=micro)
    arguments = trainer_arguments(
        settings, Processes(), folder=folder, steps=steps, seed=0, bf16=False, device="cpu", save_every=100,
        gradient_checkpointing=False,
    )  # fmt: skip
    config = TpawConfig(task="x.jsonl", loss=loss)
    order = [index % len(rows) for index in range(4 * steps)]
    return TeamTrainer(micro_model(), micro_tokenizer(), arguments, rows, order, objective(config))


def plain_log_prob(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The summed log-probability of an answer, unpadded, from the model's own logits."""
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1)[range(len(answer)), answer].sum()


@pytest.mark.parametrize("loss", ["team", "tspin"])
def test_padding_and_company_make_no_difference_to_a_pair(tmp_path, loss):
    tokenizer = micro_tokenizer()
    rows = rows_of(tokenizer, *((3, 2) if loss == "team" else (1, 3)))
    assert len({len(row["prompt"]) + len(side) for row in rows for side in row["sides"]}) > 8
    trainer = team_trainer(tmp_path, rows, loss)
    together = trainer.compute_loss(trainer.model, collate(rows, tokenizer.pad_token_id))
    alone = [trainer.compute_loss(trainer.model, collate([row], tokenizer.pad_token_id)) for row in rows]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-5, rtol=1e-5)
    # And each is the loss of what the bare model says of the sides, one by one.
    model = micro_model()
    for row, found in zip(rows, alone, strict=True):
        with torch.no_grad():
            policy = [plain_log_prob(model, row["prompt"], side)[None] for side in row["sides"]]
        players = torch.tensor(row["players"], dtype=torch.float64)[:, :, None]
        four = [*policy[:2], players[:, 0], players[:, 1]]
        if loss == "team":
            expected, _ = team_loss(*four, lam=0.1, eta=6.0, gamma=0.5)
        else:
            expected, _ = tspin_loss(*four, lam=0.1, policy_first=policy[2])
        assert found.item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_size_of_micro_batches_makes_no_difference(tmp_path):
    rows = rows_of(micro_tokenizer(), 3)
    trained, logs = [], []
    for micro in (None, 2, 1):
        trainer = team_trainer(tmp_path / str(micro), rows, micro=micro)
        trainer.train()
        trained.append(dict(trainer.model.named_parameters()))
        logs.append([entry for entry in trainer.state.log_history if "loss" in entry])
    begun = dict(micro_model().named_parameters())
    assert all((trained[0][name] - begun[name]).abs().max() > 1e-4 for name in begun)
    for other, log in zip(trained[1:], logs[1:], strict=True):
        for name, parameter in trained[0].items():
            torch.testing.assert_close(other[name], parameter, atol=1e-5, rtol=0)
        for ours, theirs in zip(logs[0], log, strict=True):
            assert set(TeamTrainer.watched) <= set(ours)
            for key in {"loss", *TeamTrainer.watched} - {"padding"}:
                assert theirs[key] == pytest.approx(ours[key], abs=1e-4), key
        assert log[0]["padding"] < logs[0][0]["padding"]
    # The first step's four rows: both sides of all beside each other.
    widths = [len(row["prompt"]) + len(side) for row in rows[:4] for side in row["sides"]]
    assert logs[0][0]["padding"] == pytest.approx(1 - sum(widths) / (8 * max(widths)))
