import math

import pytest
import torch

from tests.align.trainers.supervised_case import BATCH, causal_lm, make_trainer, sft_rows, step_gradients

ROWS = sft_rows(BATCH)


def nll_by_hand(model, rows):
    """Sum of -log p(token) over labelled tokens, row by row without padding, and their number."""
    total, count = 0.0, 0
    for row in rows:
        logps_TV = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for at, label in enumerate(row["labels"]):
            if label != -100:
                total, count = total - logps_TV[at - 1, label], count + 1
    return total, count


@pytest.fixture(scope="module")
def expected():
    model = causal_lm()
    total, count = nll_by_hand(model, ROWS)
    (total / count).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_gradients_are_those_of_the_mean_over_all_tokens_of_the_step(tmp_path, expected, micro):
    found = step_gradients("sft", tmp_path, ROWS, micro=micro)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def test_short_last_step_is_a_mean_too(tmp_path):
    rows = sft_rows(BATCH + 3, seed=2)
    trainer = make_trainer("sft", tmp_path, rows, micro=2, max_steps=2, learning_rate=1e-12)
    trainer.train()
    sampler = trainer.get_train_dataloader().batch_sampler
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    model = causal_lm()
    with torch.no_grad():
        for loss, step in zip(losses, sampler.steps(), strict=True):
            total, count = nll_by_hand(model, [rows[row] for row in step])
            assert loss == pytest.approx(float(total / count), rel=1e-6)


def test_evaluation_counts_tokens_exactly_over_uneven_batches(tmp_path):
    heldout = sft_rows(7, seed=5)  # batches of 4 and 3
    trainer = make_trainer("sft", tmp_path, ROWS, micro=4, heldout=heldout)
    with torch.no_grad():
        total, count = nll_by_hand(causal_lm(), heldout)
    metrics = trainer.evaluate()
    assert metrics["eval_tokens"] == count
    assert metrics["eval_loss"] == pytest.approx(float(total / count), rel=1e-9)


def test_rows_without_labels_have_loss_on_all_but_the_first_token(tmp_path):
    blocks = [{"input_ids": row["input_ids"]} for row in ROWS]
    trainer = make_trainer("sft", tmp_path, blocks, micro=8, heldout=blocks)
    labelled = [{**row, "labels": [-100, *row["input_ids"][1:]]} for row in blocks]
    with torch.no_grad():
        total, count = nll_by_hand(causal_lm(), labelled)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(total / count), rel=1e-9)


def test_loss_outside_the_loop_is_the_batch_mean(tmp_path):
    trainer = make_trainer("sft", tmp_path, ROWS, micro=8)
    batch = trainer.data_collator(ROWS[:3])
    total, count = nll_by_hand(trainer.model, ROWS[:3])
    assert float(trainer.compute_loss(trainer.model, batch).detach()) == pytest.approx(
        float(total.detach() / count), rel=1e-9
    )


def test_weight_decay_spares_norms_and_biases(tmp_path):
    trainer = make_trainer("sft", tmp_path, ROWS, micro=8, weight_decay=0.1, adam_beta2=0.9, adam_epsilon=1e-6)
    decayed, spared = trainer.create_optimizer().param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == (0.9, 0.9) and decayed["eps"] == 1e-6
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] for p in spared["params"])
    assert not any("norm" in names[id(p)] or "bias" in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_cosine_with_min_lr_ends_at_a_tenth(tmp_path):
    keys = {"lr_scheduler_type": "cosine_with_min_lr", "warmup_steps": 2, "learning_rate": 1e-3, "max_steps": 6}
    trainer = make_trainer("sft", tmp_path, ROWS, micro=8, **keys)
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line]
    by_hand = [0.0, 5e-4, *(1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * at / 4)) / 2) for at in range(4))]
    assert rates == pytest.approx(by_hand)
