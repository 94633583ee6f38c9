"""The settings of each loss, and the trainer that takes it."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from helpers.micro import micro_model, micro_tokenizer
from helpers.slow_losses import ETA, GAMMA, LAM, columns, drawn, slow_weights
from helpers.tiny import cpu_arguments
from skillweave.base.chat import answer_ids, prompt_ids
from skillweave.methods.tpaw import TpawConfig, dpo_loss, spin_loss, team_loss, tspin_loss
from skillweave.methods.tpaw.rows import TrainingRow
from skillweave.methods.tpaw.trainer import TeamTrainer, collate, objective, summary
from skillweave.methods.training import TrainingSettings


def test_the_settings_of_each_loss():
    def config(**given):
        return TpawConfig(task="x.jsonl", **given)

    assert (config().lam, config().eta, config().gamma) == (0.1, 6.0, 0.5)
    sizes = {
        loss: (config(loss=loss).players, config(loss=loss).remembered)
        for loss in ("team", "spin", "tspin", "dpo", "sft")
    }
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
    chosen = objective(TpawConfig(task="x.jsonl", loss=loss, bf16=False, **settings))
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
    # The rewards are those of the newest player alone, so they compare with a loss that has one player.
    assert torch.equal(shown["rewards/target"], target[0])
    assert torch.equal(shown["rewards/generated"], generated[0])
    assert torch.equal(shown["rewards/margins"], target[0] - generated[0])
    wins = [float(t > g) for t, g in zip(target[0].tolist(), generated[0].tolist(), strict=True)]
    assert shown["rewards/accuracies"].tolist() == wins
    # The team margins are those of all players.
    assert torch.equal(shown["rewards/team_margins"], target - generated)
    assert shown["weights/alpha_raised"].mean().item() == pytest.approx(float((target <= 0).double().mean()))
    assert torch.equal(shown["weights/beta_newest"], statistics["beta"][0])
    for at, column in enumerate(columns(four)):
        _, beta = slow_weights(*column)
        assert shown["weights/beta_entropy"][at].item() == pytest.approx(-sum(b * math.log(b) for b in beta))
    # Without weights alpha is 1 and all players count equally; one player has no entropy.
    plain = summary({"target_reward": target, "generated_reward": generated})
    assert not plain["weights/alpha_raised"].any()
    torch.testing.assert_close(plain["weights/beta_entropy"], torch.full((10,), math.log(3), dtype=torch.float64))
    assert not summary(spin_loss(*drawn(1, 4), lam=LAM)[1])["weights/beta_entropy"].any()


def rows_of(tokenizer, players: int, sides: int = 2) -> list[TrainingRow]:
    """Rows of many lengths, with made-up log-probabilities of the players."""
    rows = []
    for index in range(8):
        texts = [str(index) * (1 + 3 * index % 7), "ab" * (1 + index % 4), "x" * index][:sides]
        rows.append(
            TrainingRow(
                prompt=prompt_ids(tokenizer, f"say {index}" + " please" * (index % 3)),
                answers=[answer_ids(tokenizer, text) for text in texts],
                player_log_probs=[(-20.0 - index - j, -25.0 + 2 * index - j) for j in range(players)],
            )
        )
    return rows


def team_trainer(folder, rows, loss: str = "team", micro: int | None = None, steps: int = 4) -> TeamTrainer:
    settings = TrainingSettings(steps=steps, batch_size=4, learning_rate=1e-3, warmup=0.0, micro_batch_size=micro)
    arguments = cpu_arguments(settings, folder, steps=steps)
    config = TpawConfig(task="x.jsonl", loss=loss, bf16=False)
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
    assert len({len(row.prompt) + len(side) for row in rows for side in row.answers}) > 8
    trainer = team_trainer(tmp_path, rows, loss)
    together = trainer.compute_loss(trainer.model, collate(rows, tokenizer.pad_token_id))
    alone = [trainer.compute_loss(trainer.model, collate([row], tokenizer.pad_token_id)) for row in rows]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-5, rtol=1e-5)
    # Each equals the loss computed from the plain model's log-probabilities, one answer at a time.
    model = micro_model()
    for row, found in zip(rows, alone, strict=True):
        with torch.no_grad():
            policy = [plain_log_prob(model, row.prompt, side)[None] for side in row.answers]
        players = torch.tensor(row.player_log_probs, dtype=torch.float64)[:, :, None]
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
    # The first step has four rows, with two answers each.
    widths = [len(row.prompt) + len(side) for row in rows[:4] for side in row.answers]
    assert logs[0][0]["padding"] == pytest.approx(1 - sum(widths) / (8 * max(widths)))
