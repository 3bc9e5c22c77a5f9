"""DPO's loss and gradient beside an independent float64 computation, row by row and without padding."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import softplus

from align.trainers.dpo import DPOTrainer
from reward.checkpointing import enable_checkpointing, is_checkpointing
from tests.align.trainers.supervised_case import BATCH, Gradients, causal_lm, make_trainer, preference_rows

ROWS = preference_rows(BATCH)
BETA = 0.1


def policy():
    """Another model than the reference, which is the one that the trainer is made with."""
    model = causal_lm(torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in model.parameters():
            part += 0.1 * torch.randn(part.shape, generator=generator, dtype=part.dtype)
    return model


def logp(model, row, side):
    """Sum over the tokens of a reply that count, from plain logits."""
    ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
    logps_T = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    counted = torch.tensor(row[f"{side}_mask"], dtype=torch.bool)
    return logps_T[len(row["prompt_ids"]) - 1 :][counted].sum()


def by_hand(model, before, rows, nll_coef):
    """The loss of all rows, their implicit rewards (N, 2), and what the chosen ones weigh."""
    with torch.no_grad():
        known = torch.stack([torch.stack([logp(before, row, side) for side in ("chosen", "rejected")]) for row in rows])
    said = torch.stack([torch.stack([logp(model, row, side) for side in ("chosen", "rejected")]) for row in rows])
    rewards = BETA * (said - known)
    nll = -said[:, 0].sum() / sum(sum(row["chosen_mask"]) for row in rows)
    return softplus(rewards[:, 1] - rewards[:, 0]).mean() + nll_coef * nll, rewards


def moved(trainer):
    """The trainer with `policy`'s weights, after it has asked the reference."""
    trainer.model.load_state_dict(policy().state_dict())
    return trainer


@pytest.mark.parametrize(("nll_coef", "micro"), [(0.0, 2), (0.2, 1), (0.2, 8)])
def test_loss_and_gradient_are_the_independent_ones_however_a_batch_is_cut(tmp_path, monkeypatch, nll_coef, micro):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: pytest.fail("something was sent"))
    model = policy()
    loss, rewards = by_hand(model, causal_lm(), ROWS, nll_coef)
    loss.backward()
    begun = causal_lm()
    if micro == 8:
        enable_checkpointing(begun)
    options = {"model": begun, "trainer": {"nll_coef": nll_coef}}
    trainer, gradients = moved(make_trainer("dpo", tmp_path, ROWS, micro=micro, **options)), Gradients()
    assert is_checkpointing(trainer.model) == (micro == 8)  # TRL switches it off while it asks the reference
    trainer.add_callback(gradients)
    trainer.train()
    (line,) = (line for line in trainer.state.log_history if "loss" in line)
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    margins = (rewards[:, 0] - rewards[:, 1]).tolist()
    assert 0 < line["accuracy"] == sum(margin > 0 for margin in margins) / BATCH < 1
    assert line["margin"] == pytest.approx(sum(margins) / BATCH, abs=1e-5)
    assert line["rewards/chosen"] == pytest.approx(rewards[:, 0].mean().item(), abs=1e-5)
    found = gradients.steps[0]
    for name, part in model.named_parameters():
        torch.testing.assert_close(found[name], part.grad, rtol=1e-4, atol=1e-6)


def test_held_out_figures_are_exact_over_uneven_batches(tmp_path):
    heldout = preference_rows(9, seed=4)  # batches of 4, 4 and 1
    trainer = moved(make_trainer("dpo", tmp_path, ROWS, micro=8, heldout=heldout, model=causal_lm()))
    with torch.no_grad():
        loss, rewards = by_hand(policy(), causal_lm(), heldout, 0.2)
    metrics, margins = trainer.evaluate(), rewards[:, 0] - rewards[:, 1]
    assert metrics["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (metrics["eval_correct"], metrics["eval_pairs"]) == (int((margins > 0).sum()), 9)
    assert metrics["eval_margin"] == pytest.approx(margins.mean().item(), abs=1e-5)
    found = torch.as_tensor(trainer.predict(trainer.eval_dataset).predictions[:, :2], dtype=torch.float64)
    torch.testing.assert_close(found, rewards, rtol=1e-5, atol=1e-5)


def test_the_reference_is_asked_once_and_is_not_what_another_model_said(tmp_path, monkeypatch):
    asked = []
    real = DPOTrainer._reference_logps
    monkeypatch.setattr(DPOTrainer, "_reference_logps", lambda *args: asked.append(1) or real(*args))
    first = make_trainer("dpo", tmp_path, ROWS, micro=8, model=causal_lm())
    again = make_trainer("dpo", tmp_path, ROWS, micro=8, model=causal_lm())
    assert asked == [1] and first.train_dataset == again.train_dataset
    kept = json.loads((tmp_path / "reference.json").read_text())["train"]
    with torch.no_grad():
        assert kept["ref_rejected_logps"] == pytest.approx([float(logp(causal_lm(), row, "rejected")) for row in ROWS])
    assert make_trainer("dpo", tmp_path, ROWS, micro=8, model=policy()).train_dataset != first.train_dataset
    assert asked == [1, 1]
    assert first.model.config.pad_token_id is None and first.data.found() == again.data.found()


def test_an_adapter_that_goes_on_is_its_own_reference_and_stays_the_only_one(tmp_path):
    def adapted():
        model = get_peft_model(causal_lm(torch.float32), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        for name, part in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(part, generator=torch.Generator().manual_seed(2))
        return model

    torch.manual_seed(3)
    before = adapted().eval()
    torch.manual_seed(3)
    trainer = make_trainer("dpo", tmp_path, ROWS, micro=8, model=adapted(), learning_rate=0.1)
    with torch.no_grad():
        known = [float(logp(before, row, "chosen")) for row in ROWS]
    assert [row["ref_chosen_logps"] for row in trainer.train_dataset] == pytest.approx(known, rel=1e-5)
    trainer.train()
    assert trainer.state.log_history[0]["margin"] == pytest.approx(0, abs=1e-5)  # it began at the reference
    assert list(trainer.model.peft_config) == ["default"]
    parts = dict(trainer.model.named_parameters())
    assert not any(".ref." in name for name in parts)
    changed = {name for name, part in before.named_parameters() if not torch.equal(part, parts[name])}
    assert changed and all("lora_" in name for name in changed)


def test_what_is_no_config_of_ours_is_told(tmp_path):
    from trl import DPOConfig

    with pytest.raises(TypeError, match=r"args: must be trl.DPOConfig\(\.\.\., \*\*dpo_options"):
        DPOTrainer(causal_lm(), DPOConfig(str(tmp_path), bf16=False, use_cpu=True), train_dataset=ROWS)
