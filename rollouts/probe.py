"""Does the engine compute what the trainer computes? One fixed sequence, scored and continued by both after a push.

Scoring asks about the weights alone: vLLM reads no cached keys and values for it. Continuing the same sequence goes the
way of every rollout, prefix cache included, so a cache that older weights filled shows there: the sequence is long
enough for a block of it (128 tokens on a CPU).

How far the two may differ depends on the coarser of their precisions. Two sound implementations in bfloat16 differ by
0.2 nats at the worst token of a small trained model, by 0.9 where logits spread widely; other weights differ by several
nats. So in bfloat16 the probe finds a push that came apart, not the one small step that a left-out push is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from rollouts.errors import RolloutError
from rollouts.protocol import SamplingParams

LENGTH = 160  # tokens; more than a block of any prefix cache
DRAWN = 2  # tokens that continue it
TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.2, torch.bfloat16: 1.0}  # nats a token


def probe_ids(vocabulary: int, room: int, control_ids: Collection[int] = (), seed: int = 0) -> list[int]:
    """Ids drawn evenly from what is no control id: `LENGTH`, or as many as leave `DRAWN` + 1 of `room` tokens free.

    Raises:
        RolloutError: no room for two tokens, or no plain id in the vocabulary.
    """
    length = min(LENGTH, room - DRAWN - 1)
    plain = [token for token in range(vocabulary) if token not in set(control_ids)]
    if length < 2 or not plain:
        raise RolloutError(
            f"the engine has room for {room} tokens and the vocabulary {len(plain)} plain ids, too few to compare "
            "engine and trainer: raise ppo.rollout.vllm.max_model_len"
        )
    generator = torch.Generator().manual_seed(seed)
    return [plain[at] for at in torch.randint(0, len(plain), (length,), generator=generator).tolist()]


def drawing_params() -> SamplingParams:
    """How the sequence is continued: from the full distribution, the same on every call."""
    return SamplingParams(max_new_tokens=DRAWN, seed=0)


def tolerance(dtypes: Sequence[torch.dtype], override: float | None = None) -> float:
    """Nats a token that engine and trainer may differ by: of the coarser of `dtypes`, or what the recipe says."""
    return max(TOLERANCES.get(dtype, 1.0) for dtype in dtypes) if override is None else override


@dataclass(frozen=True, slots=True)
class Difference:
    """Largest |engine - trainer| of a token's log-probability, nats; nan counts as infinite.

    Attributes:
        scored: on the fixed sequence.
        drawn: on the tokens that continue it; 0 where the engine says nothing of them.
    """

    scored: float
    drawn: float

    @classmethod
    def of(cls, engine: Sequence[float], trainer: Sequence[float], drawn: Sequence[float] | None) -> Difference:
        """From log-probabilities of every id but the first of sequence and continuation, as both score them, and of
        the continuation's as the engine drew them.

        Raises:
            RolloutError: the engine gave another number of them.
        """
        if len(engine) != len(trainer):
            raise RolloutError(f"the engine scored {len(engine)} tokens where {len(trainer)} were asked for")
        return cls(_largest(engine, trainer), 0.0 if drawn is None else _largest(drawn, trainer[-len(drawn) :]))

    @property
    def largest(self) -> float:
        """Of both."""
        return max(self.scored, self.drawn)


def check(difference: Difference, allowed: float, step: int, dtypes: Sequence[torch.dtype]) -> None:
    """Refuse to go on with an engine that is too far from the trainer.

    Args:
        step: optimizer steps that made the weights that were pushed.
        dtypes: of trainer and engine, for the message.

    Raises:
        RolloutError: it is further away than `allowed`.
    """
    if difference.largest <= allowed:
        return
    names = " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    head = (
        f"after the push of step {step}'s weights, engine and trainer differ by {difference.largest:.2g} nats a token "
        f"({allowed:.2g} allowed; trainer and engine compute in {names}): "
    )
    if difference.scored <= allowed:
        cause = (
            "they score a sequence alike and sample from it differently, so the engine's prefix cache holds what older "
            "weights made; set ppo.rollout.vllm.prefix_caching: false and report it"
        )
    else:
        cause = (
            "the engine holds other weights (a push that was left out or came apart, a stale adapter) or computes "
            "another way (dtype, an architecture it treats differently); set ppo.rollout.vllm.dtype to the trainer's, "
            "adapters: merge, or engine: hf, and raise ppo.rollout.vllm.probe_tolerance only if engine/probe_max is "
            "as large from the first step on"
        )
    raise RolloutError(head + cause)


def _largest(engine: Sequence[float], trainer: Sequence[float]) -> float:
    gap = torch.tensor(engine, dtype=torch.float64) - torch.tensor(trainer, dtype=torch.float64)
    return float(gap.abs().nan_to_num(nan=torch.inf).max()) if len(gap) else 0.0
