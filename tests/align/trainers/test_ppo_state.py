import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.trainer_callback import ExportableState

from align.runs.errors import CheckpointError
from tests.align.trainers import ppo_case

VOLATILE = ("time", "seconds/", "tokens_per_second", "memory/")


def noisy(prompts, completions):
    """A reward that draws from the global generator: its state must be part of the checkpoint."""
    noise = torch.rand(len(completions)).tolist()
    return [len(text) + value for text, value in zip(completions, noise, strict=True)]


def make(folder: Path, **options):
    torch.manual_seed(11)
    return ppo_case.trainer(
        folder,
        **{
            "num_iterations": 4,
            "save_steps": 1,
            "save_total_limit": 10,
            "critic_warmup_steps": 3,
            "num_ppo_epochs": 2,
            "ptx_coef": 0.2,
            "ptx_ratio": 1,
            "ptx_blocks": [[1, 2, 3, 4, 5], [7, 8, 9], [10, 11, 12, 13], [14, 15]],
            "policy": {"lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1},
            "critic": {"lr_scheduler_type": "cosine"},
            "num_prompts": 7,
            "reward": noisy,
        }
        | options,
    )


def everything(trainer):
    weights = [p.detach().clone() for model in (trainer.policy, trainer.critic) for p in model.parameters]
    lines = [json.loads(line) for line in (trainer.output_dir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if not key.startswith(VOLATILE)} for line in lines]
    samples = [json.loads(line) for line in (trainer.output_dir / "samples.jsonl").read_text().splitlines()]
    return weights, metrics, [{key: value for key, value in line.items() if key != "time"} for line in samples]


def assert_equal(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert found[1] == expected[1]
    assert found[2] == expected[2]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    trainer = make(tmp_path_factory.mktemp("whole"))
    torch.manual_seed(3)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def whole(unbroken):
    return everything(unbroken)


LATER = [pytest.param(steps, marks=pytest.mark.slow) for steps in (1, 3)]


@pytest.mark.parametrize("stop_after", [0, *LATER])  # the warm-up of 3 steps ends inside the first iteration
def test_resumed_equals_never_stopped(tmp_path, whole, stop_after):
    class Crash(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == stop_after + 1:
                raise InterruptedError("between the checkpoint and the end of the next iteration")

    first = make(tmp_path, callbacks=[Crash()])
    torch.manual_seed(3)
    with pytest.raises(InterruptedError):
        first.train()
    second = make(tmp_path)
    torch.manual_seed(3 if stop_after == 0 else 999)
    assert second.train(resume_from_checkpoint=True).global_step == 4
    assert_equal(everything(second), whole)


@pytest.mark.slow
def test_a_callback_with_a_state_goes_on_with_it(tmp_path):
    class Counts(TrainerCallback, ExportableState):
        seen = 0

        def state(self):
            return {"args": {}, "attributes": {"seen": self.seen}}

        def on_step_end(self, args, state, control, **kwargs):
            self.seen += 1
            control.should_training_stop |= self.seen == 2

    first, second = Counts(), Counts()
    assert make(tmp_path, callbacks=[first]).train().global_step == 2
    assert make(tmp_path, callbacks=[second]).train(resume_from_checkpoint=True).global_step == 4
    assert (first.seen, second.seen) == (2, 4)


@pytest.mark.slow
def test_an_earlier_named_checkpoint_or_a_start_anew(tmp_path, unbroken, whole):
    shutil.copytree(unbroken.output_dir, tmp_path, dirs_exist_ok=True)
    second = make(tmp_path)
    second.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-2")
    assert_equal(everything(second), whole)
    again = make(tmp_path)
    torch.manual_seed(3)
    again.train()
    assert_equal(everything(again), whole)


@pytest.mark.slow
def test_a_line_after_the_last_checkpoint_is_not_doubled(tmp_path):
    """As of a run that was killed between its last evaluation and the end of its stage."""
    first, second = make(tmp_path, num_iterations=2), make(tmp_path, num_iterations=2)
    first.train()
    first.log({"eval/score": 1.0})
    second.train(resume_from_checkpoint=True)
    second.log({"eval/score": 1.0})
    assert [line["step"] for line in everything(second)[1]] == [1, 2, 2]


def test_the_state_of_a_finished_run_is_a_hugging_face_policy(tmp_path):
    trainer = make(tmp_path, num_iterations=1)
    trainer.train()
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "checkpoints" / "step-1" / "policy", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trainer.policy.parameters, strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ppo_state.pt", "ppo_state"),
        pytest.param("policy/model.safetensors", "model.safetensors", marks=pytest.mark.slow),
        pytest.param("manifest.json", "manifest", marks=pytest.mark.slow),
    ],
)
def test_a_torn_checkpoint_is_refused_by_name_and_passed_over(tmp_path, name, message):
    make(tmp_path, num_iterations=2).train()
    torn = tmp_path / "checkpoints" / "step-2" / name
    torn.write_bytes(torn.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=message):
        make(tmp_path).train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-2")
    continued = make(tmp_path, num_iterations=3)
    assert continued.train(resume_from_checkpoint=True).global_step == 3
    assert [line["step"] for line in continued.state.log_history] == [1, 2, 3]


def test_a_checkpoint_of_another_seed_is_refused(tmp_path):
    make(tmp_path, num_iterations=1).train()
    with pytest.raises(CheckpointError, match="seed 0, this run has 1"):
        make(tmp_path, seed=1).train(resume_from_checkpoint=True)


@pytest.mark.slow
def test_the_running_deviation_resumes_bit_for_bit(tmp_path):
    options = {"normalize_reward": "running_mean_std", "num_iterations": 3}
    first = make(tmp_path, **options)
    first.train()
    second = make(tmp_path, **options)
    second.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-1")
    assert second.reward_stats.state_dict() == first.reward_stats.state_dict()
    assert_equal(everything(second), everything(first))


def test_statistics_of_another_normalisation_are_refused(tmp_path):
    make(tmp_path, num_iterations=1).train()
    with pytest.raises(CheckpointError, match=r"another normalize_reward than running_mean_std.*--fresh"):
        make(tmp_path, normalize_reward="running_mean_std").train(resume_from_checkpoint=True)


def test_save_model_and_critic_can_be_loaded(tmp_path):
    from align.models.critic import Critic

    trainer = make(tmp_path, num_iterations=1)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    trainer.save_critic(tmp_path / "critic")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), trainer.policy.parameters, strict=True))
    critic = Critic.from_pretrained(tmp_path / "critic")
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), trainer.critic.parameters, strict=True))
