import math

import pytest
import torch

from align.trainers.reward import RewardTrainer
from reward.model import RewardModel
from tests.align.trainers.supervised_case import BATCH, make_trainer, pair_rows, reward_model, step_gradients

ROWS = pair_rows(BATCH)


def score(model, ids):
    return model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0]


def margins(model, rows):
    return [score(model, row["chosen_ids"]) - score(model, row["rejected_ids"]) for row in rows]


@pytest.fixture(scope="module")
def expected():
    model = reward_model()
    losses = [torch.log1p(torch.exp(-margin)) for margin in margins(model, ROWS)]
    (sum(losses) / BATCH).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_gradients_are_those_of_the_mean_over_all_pairs_of_the_step(tmp_path, expected, micro):
    found = step_gradients("reward", tmp_path, ROWS, micro=micro)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_held_out_accuracy_is_exact_over_uneven_batches(tmp_path):
    heldout = pair_rows(9, seed=4)  # batches of 4, 4 and 1
    tie = {"chosen_ids": [5, 6, 258], "rejected_ids": [5, 6, 258]}
    trainer = make_trainer("reward", tmp_path, ROWS, micro=8, heldout=[*heldout, tie])
    with torch.no_grad():
        by_hand = [float(margin) for margin in margins(reward_model().eval(), [*heldout, tie])]
    metrics = trainer.evaluate()
    assert metrics["eval_pairs"] == 10
    assert metrics["eval_correct"] == sum(margin > 0 for margin in by_hand)  # the tie is not correct
    assert metrics["eval_accuracy"] == metrics["eval_correct"] / 10
    assert metrics["eval_loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in by_hand) / 10, rel=1e-5)
    assert metrics["eval_margin"] == pytest.approx(sum(by_hand) / 10, abs=1e-6)


def test_training_log_has_accuracy_and_margin_of_the_training_pairs(tmp_path):
    trainer = make_trainer("reward", tmp_path, ROWS, micro=2)
    with torch.no_grad():
        by_hand = [float(margin) for margin in margins(reward_model(), ROWS)]
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert line["accuracy"] == sum(margin > 0 for margin in by_hand) / BATCH
    assert line["margin"] == pytest.approx(sum(by_hand) / BATCH, abs=1e-5)


def test_evaluation_does_not_enter_the_training_figures(tmp_path):
    trainer = make_trainer("reward", tmp_path, ROWS, micro=8, heldout=pair_rows(6, seed=9), max_steps=2, eval_steps=1)
    trainer.train()
    assert all("accuracy" in line for line in trainer.state.log_history if "loss" in line)
    assert float(trainer._seen_3.sum()) == 0.0


def test_a_subclass_changes_the_loss_at_its_seam(tmp_path):
    class Margin(RewardTrainer):
        def compute_pair_losses(self, chosen_B, rejected_B, inputs):
            assert inputs["input_ids"].shape[0] == 2 * len(chosen_B)
            return (chosen_B - rejected_B - 1).square()

    plain = make_trainer("reward", tmp_path, ROWS, micro=4)
    trainer = Margin(plain.model, plain.args, train_dataset=ROWS, data_collator=plain.data_collator)
    with torch.no_grad():
        by_hand = sum((float(margin) - 1) ** 2 for margin in margins(reward_model(), ROWS)) / BATCH
    trainer.train()
    assert next(line["loss"] for line in trainer.state.log_history if "loss" in line) == pytest.approx(
        by_hand, rel=1e-5
    )


def test_dropout_is_off(tmp_path):
    model = reward_model()
    for layer in model.backbone.layers:
        layer.self_attn.attention_dropout = 0.5
    trainer = make_trainer("reward", tmp_path, ROWS, micro=8, model=model)
    model.train()
    batch = trainer.data_collator(ROWS)
    first, second = (trainer.pair_scores(model, batch) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_save_model_writes_what_from_pretrained_reads(tmp_path):
    trainer = make_trainer("reward", tmp_path, ROWS, micro=8)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    loaded = RewardModel.from_pretrained(tmp_path / "saved")
    ids = ROWS[0]["chosen_ids"]
    with torch.no_grad():
        assert torch.equal(score(loaded, ids), score(trainer.model.eval(), ids))
    assert not (tmp_path / "saved" / "training_args.bin").exists()
