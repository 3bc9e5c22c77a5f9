"""Whatever an iteration raises, the state before it is left, or is truthfully said to be gone."""

import pytest
import torch
from accelerate.state import GradientState
from torch.nn.utils import parameters_to_vector
from transformers import TrainerCallback

from align.runs.checkpoint import latest
from align.runs.errors import TrainingError
from align.runtime.errors import OutOfMemoryError
from align.trainers.ppo import PPOTrainer
from align.trainers.ppo.guards import enough_memory
from tests.align.trainers import ppo_case, supervised_case


class Bug(Exception):
    """Of somebody's subclass."""


def weights(trainer):
    return torch.cat([parameters_to_vector(one.raw.parameters()) for one in (trainer.policy, trainer.critic)]).detach()


def failing(seam, problem, *, times=1, after=0):
    """A trainer whose `seam` raises in the second iteration, after so many calls of it went well."""

    class Failing(PPOTrainer):
        calls, left = 0, times

    def broken(self, *args, **kwargs):
        if self.state.global_step == 1 and self.left:
            self.calls += 1
            if self.calls > after:
                self.left -= 1
                raise problem
        return getattr(PPOTrainer, seam)(self, *args, **kwargs)

    setattr(Failing, seam, broken)
    return Failing


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    trainer = ppo_case.trainer(tmp_path_factory.mktemp("unbroken"), num_iterations=3, **PTX)
    trainer.train()
    return weights(trainer)


PTX = {"ptx_coef": 0.1, "ptx_ratio": 1, "ptx_blocks": [[1, 2, 3, 4], [5, 6, 7], [8, 9, 8, 9], [4, 4, 1]]}
BEFORE = ["policy_loss"]
LATER = ["collect", "score", "penalize_scores", "compute_advantages", "value_loss", "ptx_loss"]
BEFORE += [pytest.param(seam, marks=pytest.mark.slow) for seam in LATER]


@pytest.mark.parametrize("seam", BEFORE)
def test_a_bug_before_the_weights_move_leaves_the_state_before_the_iteration(tmp_path, unbroken, seam):
    trainer = ppo_case.trainer(tmp_path, kind=failing(seam, Bug("oh")), num_iterations=3, **PTX)
    with pytest.raises(Bug, match="oh") as caught:
        trainer.train()
    folder = tmp_path / "checkpoints" / "step-1"
    assert caught.value.__notes__ == [f"iteration 2: the state before it is saved in {folder}"]
    again = ppo_case.trainer(tmp_path, num_iterations=3, **PTX)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(again), unbroken)


def test_the_same_trainer_goes_on_after_it(tmp_path, unbroken):
    trainer = ppo_case.trainer(tmp_path, kind=failing("ptx_loss", Bug("oh")), num_iterations=3, **PTX)
    with pytest.raises(Bug):
        trainer.train()
    trainer.train()
    assert torch.equal(weights(trainer), unbroken)


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interruption_leaves_it_too(tmp_path, problem):
    with pytest.raises(type(problem)):
        ppo_case.trainer(tmp_path, kind=failing("score", problem)).train()
    assert latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-1"


def test_after_an_optimizer_step_it_says_that_the_state_is_gone(tmp_path):
    def stopped(folder, **options):
        kind = failing("policy_loss", Bug("oh"), after=2)  # two micro-batches make the first step
        with pytest.raises(Bug) as caught:
            ppo_case.trainer(folder, kind=kind, num_iterations=3, **options).train()
        return caught.value.__notes__

    (note,) = stopped(tmp_path)
    assert note == (
        "iteration 2: weights have moved; the models as they are inside the iteration are saved in "
        f"{tmp_path / 'failed' / 'step-1'}, there is no checkpoint before it"
    )
    assert not (tmp_path / "checkpoints").exists()
    other = tmp_path / "other"
    (note,) = stopped(other, save_steps=1)
    assert note.endswith(f"the newest checkpoint is {other / 'checkpoints' / 'step-1'}")


SHORT = [
    ("collect", "sampling replies", r"ppo\.rollout\.batch_size \(64\) or ppo\.rollout\.max_completion_length \(7\)"),
    ("score", "the reward", "its batch_size"),
    ("make_experience", "the passes over the sampled replies", r"ppo\.micro_batch_size \(2\)"),
    ("value_loss", "the update", r"ppo\.micro_batch_size \(2\) or ppo\.ptx_micro_batch_size \(\d\)"),
]


@pytest.mark.parametrize(("seam", "who", "keys"), SHORT)
def test_a_lack_of_memory_names_what_to_lower(tmp_path, seam, who, keys):
    class Greedy(PPOTrainer):
        pass

    def ask(self, *args, **kwargs):
        return torch.empty(1 << 60)

    setattr(Greedy, seam, ask)
    with pytest.raises(TrainingError, match=rf"{who} ran out of memory \(.*\): lower {keys}.*step-0$") as caught:
        ppo_case.trainer(tmp_path, kind=Greedy, **PTX).train()
    causes = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any(isinstance(cause, OutOfMemoryError) for cause in causes) and type(causes[-1]) is RuntimeError


def test_the_bound_that_holds_is_named():
    config = ppo_case.section(micro_batch_size=None, rollout={"max_prompt_length": 93})
    sentence = r"lower ppo\.micro_batch_tokens \(3072\) or ppo\.rollout"
    with pytest.raises(OutOfMemoryError, match=sentence), enough_memory(config, "update"):
        torch.empty(1 << 60)


def test_a_failed_evaluation_is_all_that_is_done_again(tmp_path):
    asked = []

    def fails_once(prompts, completions):
        asked.append(len(prompts))
        if asked.count(3) == 3:  # the second look: three prompts, sampled and greedy
            raise KeyError("oh")
        return ppo_case.vowels(prompts, completions)

    options = {"eval_prompts": ppo_case.prompts(3), "evaluation": {"every_steps": 2}}
    trainer = ppo_case.trainer(tmp_path, reward=fails_once, **options)
    with pytest.raises(TrainingError, match=r"evaluation after iteration 2\); the state is saved in .*step-2$"):
        trainer.train()
    again = ppo_case.trainer(tmp_path, **options)
    before = len(asked)
    again.train(resume_from_checkpoint=True)
    assert len(asked) == before and again.optimizer_steps == trainer.optimizer_steps
    assert "eval/score" in again.state.log_history[-1]


class BreakOff(TrainerCallback):
    """Between the micro-batches of a step."""

    def on_substep_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("made", ["before", "after"])
def test_ppo_trains_after_a_trainer_that_was_broken_off_within_a_step(tmp_path, made):
    trainer = ppo_case.trainer(tmp_path, num_iterations=1) if made == "before" else None
    other = supervised_case.make_trainer("sft", tmp_path / "sft", supervised_case.sft_rows(8), micro=2)
    other.add_callback(BreakOff())
    with pytest.raises(KeyboardInterrupt):
        other.train()
    assert not GradientState().sync_gradients  # what it leaves
    trainer = trainer or ppo_case.trainer(tmp_path, num_iterations=1)
    models = [trainer.policy.raw, trainer.critic.raw]
    before = [parameters_to_vector(model.parameters()).detach().clone() for model in models]
    trainer.train()
    for model, was in zip(models, before, strict=True):  # two steps of Adam at these rates
        assert (parameters_to_vector(model.parameters()) - was).abs().max() > 0.01


def test_gradients_that_somebody_switched_off_are_on_again(tmp_path):
    torch.set_grad_enabled(False)
    try:
        ppo_case.trainer(tmp_path, num_iterations=1).train()
    finally:
        torch.set_grad_enabled(True)


def test_a_step_that_trains_nothing_is_an_error(tmp_path):
    class Elsewhere(PPOTrainer):
        def update(self, experience):
            GradientState()._set_sync_gradients(False)  # a trainer of the user's, broken off meanwhile
            return super().update(experience)

    try:
        with pytest.raises(TrainingError, match=r"optimizer step of ppo\.critic was not made.*iteration 1"):
            ppo_case.trainer(tmp_path, kind=Elsewhere).train()
    finally:
        GradientState()._set_sync_gradients(True)


def test_float16_weights_are_refused_and_bfloat16_ones_told_of(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"ppo\.policy: float16 weights overflow"):
        ppo_case.trainer(tmp_path, dtype=torch.float16)
    ppo_case.trainer(tmp_path, dtype=torch.bfloat16, policy={"learning_rate": 1e-6})
    assert "ppo.policy: all weights are trained in bfloat16, which rounds a step of learning_rate 1e-06" in caplog.text
