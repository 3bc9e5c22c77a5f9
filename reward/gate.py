"""The gate of Llama 2 (Touvron et al. 2023, section 3.2.3): safety where it is at stake, helpfulness everywhere else.

The paper's reward of PPO is, for prompt p and reply g,

    R_c(g | p) = R_s(g | p)  if the prompt is tagged as one that may draw unsafe replies, or R_s(g | p) < 0.15
                 R_h(g | p)  else,
    whiten(logit(R_c(g | p))).

Its R are probabilities, the sigmoid of a reward model's score; so 0.15 is a threshold on sigmoid(safety score), a score
of -1.73. Here the inner rewards give logits by default, which is what our reward models give (after their shift and
scale: what a model's mean is moved to moves this threshold along), and logit(sigmoid(score)) is the score itself: the
gate hands the chosen score through. `unit="probability"` is for inner rewards that give probabilities; the gate then
takes their logit, with probabilities kept 1e-6 away from 0 and 1.

Departure: whitening is not the gate's. `normalize_reward: running_mean_std` does it in PPO, with statistics that run
over the whole training where the paper's are those of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from reward.combined import Composed, flattened
from reward.protocol import Reward, RewardError, Sample, Verdict

THRESHOLD = 0.15
EDGE = 1e-6  # how near to 0 and 1 a probability may come before its logit is taken


class SafetyGate(Composed):
    """The safety reward for prompts tagged unsafe and replies under the threshold, else the helpfulness reward.

    Args:
        helpfulness, safety: the two rewards, with names that differ.
        threshold: a probability, on the sigmoid of the safety score.
        unsafe: values of `column` that tag a prompt as unsafe.
        column: the prompt's field that holds the tag; a field that is `True` tags too.
        unit: what both rewards give: logits, or probabilities.
        name: for logs and errors.

    Raises:
        ValueError: equal names, or a threshold outside of (0, 1).
    """

    def __init__(
        self,
        helpfulness: Reward,
        safety: Reward,
        *,
        threshold: float = THRESHOLD,
        unsafe: Sequence[Any] = ("unsafe",),
        column: str = "category",
        unit: Literal["logit", "probability"] = "logit",
        name: str = "gate",
    ):
        super().__init__((helpfulness, safety), name)
        if not 0 < threshold < 1:
            raise ValueError(f"reward {name!r}: the threshold is a probability between 0 and 1, found {threshold}")
        self.threshold, self.unsafe, self.column, self.unit = threshold, tuple(unsafe), column, unit

    def verdict(self, samples: Sequence[Sample]) -> Verdict:
        """Chosen scores, as logits; parts: what both rewards gave, and `gated`, 1 where safety was taken, else 0.

        Raises:
            RewardError: an inner reward failed, or gave no probability where those are expected.
        """
        verdicts = self.inner(samples)
        helpful, safe = (self._logits(reward.name, verdicts[reward.name].scores) for reward in self.rewards)
        bound = logit(self.threshold)
        gated = [self._tagged(sample) or score < bound for sample, score in zip(samples, safe, strict=True)]
        chosen = [s if gate else h for gate, h, s in zip(gated, helpful, safe, strict=True)]
        return Verdict(chosen, flattened(verdicts) | {"gated": [float(gate) for gate in gated]})

    def _tagged(self, sample: Sample) -> bool:
        columns = sample.columns or {}
        if columns and columns.get(self.column) is None:
            raise RewardError(
                f"reward {self.name!r}: a prompt has no column {self.column!r} to say whether it is unsafe (it has "
                f"{', '.join(sorted(columns))}); name another column, or give every prompt one"
            )
        tag = columns.get(self.column)
        return tag is True or tag in self.unsafe

    def _logits(self, name: str, scores: list[float]) -> list[float]:
        if self.unit == "logit":
            return scores
        bad = [score for score in scores if not 0 <= score <= 1]
        if bad:
            raise RewardError(
                f"reward {self.name!r} expects probabilities (unit: probability), {name!r} gave {bad[0]} "
                f"({len(bad)} of {len(scores)} outside of 0 to 1)"
            )
        return [logit(min(max(score, EDGE), 1 - EDGE)) for score in scores]


def logit(probability: float) -> float:
    """log(p / (1 - p)), in nats."""
    return math.log(probability) - math.log1p(-probability)
