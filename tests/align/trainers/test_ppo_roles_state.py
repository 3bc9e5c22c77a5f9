"""Checkpoints of models with adapters: what lies in them, and what is put back from them."""

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import TrainerCallback

from align.runs.errors import CheckpointError
from tests.align.models import roles_case
from tests.align.trainers import ppo_case, roles_run
from tests.align.trainers.test_ppo_state import assert_equal, everything


def make(folder, shared=True, stop_after=None, parts=None, **options):
    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == stop_after:
                raise InterruptedError

    changes = {"num_iterations": 3, "save_steps": 1, "save_total_limit": 9, "critic_warmup_steps": 3, "ema_decay": 0.9}
    return roles_run.trainer(
        folder,
        parts or roles_run.models(shared),
        kind=ppo_case.PPOTrainer,
        callbacks=[Crash()],
        policy={"lr_scheduler_type": "linear", "weight_decay": 0.1},
        **changes | options,
    )


def tensors(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_resumed_equals_never_stopped(tmp_path, shared):
    whole = make(tmp_path / "whole", shared)
    whole.train()
    with pytest.raises(InterruptedError):
        make(tmp_path / "killed", shared, stop_after=2).train()
    parts = roles_run.models(shared)
    with torch.no_grad():  # what the checkpoint holds counts, not what the models begin with
        for name in ("policy", "critic"):
            for parameter in parts[name].parameters():
                if parameter.requires_grad:
                    parameter.fill_(3.0)
    again = make(tmp_path / "killed", parts=parts)
    assert again.train(resume_from_checkpoint=True).global_step == 3
    assert_equal(everything(again), everything(whole))
    averages = zip(again.ema.module.parameters(), whole.ema.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in averages)
    step = tmp_path / "whole/checkpoints/step-3"
    named = {name: [n for n, p in parts[name].named_parameters() if p.requires_grad] for name in ("policy", "critic")}
    assert tensors(step / "policy").keys() == tensors(step / "ema").keys() == set(named["policy"])
    assert tensors(step / "critic").keys() == set(named["critic"]) >= {"head.weight"}
    assert not any("base_layer" in name or "embed" in name for name in tensors(step / "policy"))
    assert sorted(path.name for path in (step / "policy").iterdir()) == ["model.safetensors"]


@pytest.mark.parametrize("shared", [True, False])
def test_an_adapter_is_not_put_on_another_base(tmp_path, shared):
    make(tmp_path, shared, num_iterations=1).train()
    parts = roles_run.models(shared)
    other = parts["policy"].get_base_model().model.layers[0].mlp.gate_proj.weight
    with torch.no_grad():
        other[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match=r"step-1 was written by a run whose policy is trained on the base '' "):
        make(tmp_path, parts=parts).train(resume_from_checkpoint=True)
    parts = roles_run.models(shared)
    whole = roles_case.base()
    with pytest.raises(CheckpointError, match="and in this run it is trained without an adapter: continue with that"):
        make(tmp_path, parts=parts | {"policy": whole}).train(resume_from_checkpoint=True)


def test_saved_models_are_peft_folders(tmp_path):
    trainer = make(tmp_path / "run", num_iterations=1)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    trainer.save_ema(tmp_path / "ema")
    trainer.save_critic(tmp_path / "critic")
    batch = torch.tensor([[5, 9, 200, 31, 7]])
    saved = PeftModel.from_pretrained(roles_case.base(), tmp_path / "model").eval()
    with torch.no_grad():
        assert torch.equal(saved(input_ids=batch).logits, trainer.policy.module(input_ids=batch).logits)
    average = PeftModel.from_pretrained(roles_case.base(), tmp_path / "ema")
    found = [p for name, p in average.named_parameters() if "lora_" in name]
    assert all(torch.equal(a, b) for a, b in zip(found, trainer.ema.module.parameters(), strict=True))
    files = {path.name for path in (tmp_path / "critic").iterdir()}
    assert files >= {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "critic_config.json"}
    assert (tmp_path / "model/tokenizer.json").is_file() and not (tmp_path / "model/model.safetensors").exists()
