"""`rollout.exact` in PPO: the engine's log-probabilities are the trainer's to the bit, and so the first ratio is 1."""

import pytest
import torch

from align.runs.errors import TrainingError
from align.trainers.ppo import PPOTrainer, make_accelerator
from reward.sources import ModelReward
from rollouts.hf import HFEngine
from tests.align.models import roles_case
from tests.align.trainers import ppo_case, roles_run

ROLLOUT = {"temperature": 0.8, "top_p": 0.9, "max_completion_length": 12, "num_generations": 2}


class Corrected(PPOTrainer):
    """Notes the weights of the importance correction and how far the first minibatch's ratio is from 1."""

    def update(self, experience):
        self.weights, self.apart = [], []
        return super().update(experience)

    def policy_loss(self, logps_BS, batch):
        self.weights += batch.importance_NS[batch.mask_NS].tolist()
        self.apart += (logps_BS - batch.old_logps_NS).detach().abs()[batch.mask_NS].tolist()
        return super().policy_loss(logps_BS, batch)


def trained(folder, exact, precision="no", **options):
    options = {"importance_sampling_correction": "token", "num_mini_batches": 1, "micro_batch_size": 1} | options
    rollout = ROLLOUT | {"exact": exact} | options.pop("rollout", {})
    accelerator = make_accelerator(precision)
    trainer = ppo_case.trainer(folder, kind=Corrected, accelerator=accelerator, rollout=rollout, **options)
    return trainer, trainer.step()["engine/logp_diff_max"]


GENERATE = pytest.param(ppo_case.WINDOW, id="generate", marks=pytest.mark.slow)


@pytest.mark.parametrize("changes", [pytest.param({}, id="decode"), GENERATE])
def test_log_probabilities_of_engine_and_trainer_are_equal_to_the_bit(tmp_path, changes):
    trainer, apart = trained(tmp_path / "exact", True, "bf16", policy_model=ppo_case.policy(**changes))
    assert apart == 0 and set(trainer.weights) == {1.0} and set(trainer.apart) == {0.0}
    assert trainer.step()["engine/logp_diff_max"] == 0  # of weights that have moved
    assert trainer.evaluate(ppo_case.prompts(2), num_samples=1)["eval/kl_greedy"] > 0
    _, apart = trained(tmp_path / "plain", False, "bf16", policy_model=ppo_case.policy(**changes))
    assert apart > 1e-3


@pytest.mark.parametrize(
    ("changes", "checkpointed"),
    [
        pytest.param({}, False, id="plain"),
        pytest.param({}, True, id="checkpointed", marks=pytest.mark.slow),
        pytest.param({"four_bit": True}, False, id="4bit", marks=[pytest.mark.slow, pytest.mark.needs("bitsandbytes")]),
    ],
)
def test_the_role_that_is_sampled_is_the_one_that_is_trained(tmp_path, changes, checkpointed):
    if changes:
        roles_case.base().save_pretrained(tmp_path / "base")
        changes = {"four_bit": tmp_path / "base"}
    parts = roles_run.models(shared=True, **changes)  # of one backbone: policy, reference, critic and reward
    if checkpointed:
        for name in ("policy", "critic"):
            parts[name].gradient_checkpointing_enable({"use_reentrant": False})
    given = {"policy_model": parts["policy"], "critic_model": parts["critic"], "reference": parts["reference"]}
    given["reward"] = ModelReward(parts["reward"].eval(), ppo_case.TOKENIZER)
    trainer, apart = trained(tmp_path / "run", True, "bf16", **given)
    assert apart == 0 and set(trainer.weights) == {1.0} and set(trainer.apart) == {0.0}
    figures = trainer.step()  # of an adapter that has moved
    assert figures["engine/logp_diff_max"] == 0 and figures["kl/reply"] != 0


def test_a_pass_that_the_update_makes_is_made_before(tmp_path):
    _, apart = trained(tmp_path, True, kl_in="loss", entropy_coef=0.01, rollout={"temperature": 1.0, "top_p": 1.0})
    assert apart == 0


def test_what_moves_between_sampling_and_training_is_found(tmp_path):
    class Moved(PPOTrainer):
        def collect(self, prompts, params=None):
            samples = super().collect(prompts, params)
            with torch.no_grad():
                self.policy.parameters[0].mul_(1.001)
            return samples

    trainer = ppo_case.trainer(tmp_path, kind=Moved, micro_batch_size=1, rollout=ROLLOUT | {"exact": True})
    with pytest.raises(TrainingError, match="exact: the trainer's log-probabilities are not those that the replies"):
        trainer.step()


def test_an_engine_of_ones_own_is_refused(tmp_path):
    model = ppo_case.policy()
    with pytest.raises(TrainingError, match="exact: HFEngine was given to the trainer ready-made"):
        ppo_case.trainer(
            tmp_path, policy_model=model, engine=HFEngine(model, 0), micro_batch_size=1, rollout={"exact": True}
        )
