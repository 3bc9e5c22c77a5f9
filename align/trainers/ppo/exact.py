"""`rollout.exact`: the pass that draws the replies is the pass that is trained (`rollouts.exact`), and the proof of it.

In its last bits a pass over a token depends on how many tokens are computed with it. So each reply is computed alone,
padded to `max_completion_length`, when it is drawn and whenever it is trained on: what is said of a token is then a
function of the tokens before it, as sampling wants it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.functional.linear_logprobs import Watch
from align.recipe.ppo_section import PPOConfig
from align.runs.errors import TrainingError
from align.trainers.optimization import TrainedModel
from align.trainers.ppo.forward import reply_distribution
from align.trainers.ppo.types import Samples, TokenBatch
from rollouts.protocol import Engine


class AlonePass:
    """A `rollouts.exact.TrainerPass`: the policy's pass over a micro-batch of one reply."""

    def __init__(self, policy: TrainedModel, config: PPOConfig, pad_id: int):
        self.policy, self.config, self.pad_id = policy, config, pad_id

    @torch.no_grad()
    def __call__(self, prompt: Sequence[int], reply: Sequence[int], temperature: float, watch: Watch) -> list[float]:
        policy, room, learns = self.policy, reply_room(self.config), self.config.entropy_coef > 0
        batch = TokenBatch.from_ids([prompt], [reply], self.pad_id, reply_room=room).to(policy.parameters[0].device)
        said = reply_distribution(policy.module, batch, temperature, entropy=True, entropy_gradient=learns, watch=watch)
        return said.full[batch.mask_NS].tolist()


def reply_room(config: PPOConfig) -> int | None:
    """Tokens that each reply is computed with; None: as many as it has."""
    return config.rollout.max_completion_length if config.rollout.exact else None


def check_exact(config: PPOConfig, engine: Engine, sharded: bool) -> None:
    """Raises TrainingError where replies are to be drawn from the trainer's own logits and cannot be.

    Args:
        sharded: the policy is spread over ranks by FSDP2, and whole only while an engine samples with it.
    """
    if not config.rollout.exact:
        return
    if getattr(engine, "trainer_pass", None) is None:
        raise TrainingError(
            f"ppo.rollout.exact: {type(engine).__name__} was given to the trainer ready-made and cannot be told what "
            "draws its tokens; leave the engine to rollout.engine, or set exact to false"
        )
    if sharded and not engine.shares_module:
        raise TrainingError(
            "ppo.rollout.exact: ranks that share a sharded policy make their passes together, and while vLLM samples "
            "each needs as many as its replies take; use engine: hf, launch with DDP, or set exact to false"
        )


def require_exact(samples: Samples, tokens: TokenBatch, logps_NS: Tensor) -> None:
    """Raises TrainingError unless the engine's log-probabilities are these, to the bit."""
    untold = any(logps is None for logps in samples.engine_logps)
    if untold or bool((tokens.on_actions(samples.engine_logps) != logps_NS.float())[tokens.mask_NS].any()):
        raise TrainingError(
            "ppo.rollout.exact: the trainer's log-probabilities are not those that the replies were drawn by: an own "
            "`collect` or `minibatches` changes replies or micro-batches, something moves the policy between sampling "
            "and training, or this device does not repeat a pass to the bit; set exact to false"
        )
