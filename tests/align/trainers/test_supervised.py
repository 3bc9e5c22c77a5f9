import json

import pytest
import torch

from align.runs import checkpoint
from align.trainers import supervised
from align.trainers.supervised import disable_dropout, set_attention_dropout
from tests.align.trainers.supervised_case import (
    causal_lm,
    chat_rows,
    make_trainer,
    pair_rows,
    preference_rows,
    reward_model,
    sft_rows,
)

CASES = {
    "sft": (sft_rows(20), lambda: causal_lm(torch.float32, attention_dropout=0.2)),
    "reward": (pair_rows(20), reward_model),
    "dpo": (preference_rows(20), lambda: causal_lm(torch.float32)),
}


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "stop"),  # inside the first epoch of three steps, at its end, and in the second
    [("sft", 2), ("sft", 3), ("sft", 4), ("reward", 3), ("dpo", 4)],
)
def test_resuming_equals_never_having_stopped(tmp_path, kind, stop):
    rows, model = CASES[kind]
    keys = {"micro": 4, "max_steps": 6, "lr_scheduler_type": "cosine", "warmup_steps": 1, "save_total_limit": 9}
    whole = make_trainer(kind, tmp_path / "whole", rows, model=model(), save_steps=stop, **keys)
    whole.train()
    again = make_trainer(kind, tmp_path / "again", rows, model=model(), **keys)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / f"step-{stop}"))
    assert again.state.global_step == 6
    for name, value in weights(whole).items():
        assert torch.equal(value, again.model.state_dict()[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"packing": True, "max_length": 48, "loss_reduction": "turn_mean"},
        {"group_by_length": True, "max_z_coef": 0.1},
    ],
)
def test_resuming_packed_or_grouped_rows_inside_the_second_epoch(tmp_path, options):
    rows = chat_rows(40)
    keys = {"micro": 4, "num_train_epochs": 2.0, "max_steps": None, "logging_steps": 4, "trainer": options}

    def dropping():
        return causal_lm(torch.float32, attention_dropout=0.2)

    whole = make_trainer("sft", tmp_path / "whole", rows, model=dropping(), save_steps=1, save_total_limit=99, **keys)
    whole.train()
    last = whole.state.global_step
    again = make_trainer("sft", tmp_path / "again", rows, model=dropping(), **keys)
    assert again.planned_steps() == last
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / f"step-{last // 2 + 1}"))
    assert again.state.global_step == last
    for name, value in weights(whole).items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    logged = [[line.get("max_z") for line in one.state.log_history if "loss" in line] for one in (whole, again)]
    assert logged[0] == logged[1] and all((value is not None) == ("max_z_coef" in options) for value in logged[0])


def test_checkpoints_are_whole_named_by_step_and_limited(tmp_path):
    trainer = make_trainer("sft", tmp_path, sft_rows(20), micro=4, max_steps=4, save_steps=1, save_total_limit=2)
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-3", "step-4"]
    checkpoint.verify(tmp_path / "checkpoints" / "step-4")
    names = {path.name for path in (tmp_path / "checkpoints" / "step-4").iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= names
    assert "training_args.bin" not in names
    assert json.loads((tmp_path / "checkpoints/step-4/trainer_state.json").read_text())["global_step"] == 4
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_finished_checkpoint_is_taken_over_without_another_step(tmp_path):
    rows = sft_rows(20)
    trainer = make_trainer("sft", tmp_path, rows, micro=4, max_steps=4, save_steps=4)
    trainer.train()
    assert trainer.planned_steps() == 4
    again = make_trainer("sft", tmp_path, rows, micro=4, max_steps=4)
    again.load_finished(tmp_path / "checkpoints" / "step-4")
    assert again.state.global_step == 4
    for name, value in weights(trainer).items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_planned_steps_of_whole_epochs(tmp_path):
    trainer = make_trainer("sft", tmp_path, sft_rows(20), micro=4, max_steps=None, num_train_epochs=2.0)
    assert trainer.planned_steps() == 6  # 20 rows are 3 steps of at most 8


def test_what_ends_training_on_another_rank_ends_it_here(tmp_path, monkeypatch):
    trainer = make_trainer("sft", tmp_path, sft_rows(8), micro=4, max_steps=4)
    monkeypatch.setattr(supervised, "any_rank", lambda mine: mine or trainer.state.global_step == 2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_training_does_not_touch_the_global_generator_without_dropout(tmp_path):
    trainer = make_trainer("sft", tmp_path, sft_rows(8), micro=4, max_steps=2)
    before = torch.get_rng_state()
    trainer.train()
    assert torch.equal(before, torch.get_rng_state())


def test_a_train_set_without_length_is_refused(tmp_path):
    trainer = make_trainer("sft", tmp_path, iter(()), micro=4)
    with pytest.raises(ValueError, match="train_dataset with a length"):
        trainer.train()


def test_dropout_switches():
    model = causal_lm(torch.float32)
    set_attention_dropout(model, 0.3)
    assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0.3}
    model.extra = torch.nn.Dropout(0.5)
    disable_dropout(model)
    assert model.extra.p == 0.0
    assert {layer.self_attn.attention_dropout for layer in model.model.layers} == {0.0}
