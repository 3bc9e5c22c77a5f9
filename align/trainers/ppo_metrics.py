"""The figures PPO logs. All are means over real reply tokens or replies of the whole global batch, never over padding.

Rollout figures come from the experience, which every rank holds in full; update figures are sums of the losses'
statistics over micro-batches and ranks, divided by what they counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from align.functional import Moments, explained_variance, kl_estimate, masked_mean, masked_sum, masked_var, merge_stats
from align.trainers.experience import Experience, Samples


class Stopwatch:
    """Seconds by phase of one iteration."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def metrics(self, tokens: int) -> dict[str, float]:
        """`seconds/PHASE`, their sum, and tokens (prompt and reply) a second."""
        total = sum(self.seconds.values())
        named = {f"seconds/{phase}": seconds for phase, seconds in self.seconds.items()}
        return {**named, "seconds/total": total, "tokens_per_second": tokens / total if total else 0.0}


def reply_kl(experience: Experience, kind: str = "k1") -> Tensor:
    """kl_N: nats a reply, summed over its tokens (k1: log policy - log reference)."""
    kl_NS = kl_estimate(experience.old_logps_NS, experience.ref_logps_NS, kind)
    return masked_sum(kl_NS, experience.mask_NS, dim=1)


def rollout_metrics(
    samples: Samples, experience: Experience, entropy_NS: Tensor, advantages_std: float
) -> dict[str, float]:
    """What the replies of one iteration look like, before the update."""
    mask_NS = experience.mask_NS
    tokens = mask_NS.sum()
    lengths_N = mask_NS.sum(1).float()
    kl_N = reply_kl(experience)
    error_NS = (experience.old_values_NS - experience.returns_NS).square()
    figures = {
        "score/mean": experience.scores_N.mean(),
        "score/std": experience.scores_N.std(unbiased=False),
        "reward/mean": experience.normalized_N.mean(),
        "reward/std": experience.normalized_N.std(unbiased=False),
        "kl/reply": kl_N.mean(),
        "kl/token": kl_N.sum() / tokens,
        "kl/k3_token": reply_kl(experience, "k3").sum() / tokens,
        "entropy": masked_mean(entropy_NS, mask_NS),
        "value/mean": masked_mean(experience.old_values_NS, mask_NS),
        "value/explained_variance": explained_variance(
            masked_sum(error_NS, mask_NS), Moments.of(experience.returns_NS, mask_NS)
        ),
        "returns/std": masked_var(experience.returns_NS, mask_NS).sqrt(),
        "advantages/std": advantages_std,
        "length/mean": lengths_N.mean(),
        "length/max": lengths_N.max(),
        "end_rate": sum(samples.finished) / len(samples),
        "distinct": len(set(samples.reply_ids)) / len(samples),
    }
    return {key: float(figure) for key, figure in figures.items()}


def part_metrics(parts: dict[str, Tensor], prefix: str = "score") -> dict[str, float]:
    """`PREFIX/PART/mean` and `PREFIX/PART/std` (population) of what each part of the reward said, in its own unit."""
    figures = {}
    for name, scores_N in parts.items():
        figures[f"{prefix}/{name}/mean"] = float(scores_N.mean())
        figures[f"{prefix}/{name}/std"] = float(scores_N.std(unbiased=False))
    return figures


def sample_rows(
    samples: Samples, experience: Experience, count: int, parts: dict[str, Tensor] | None = None
) -> list[dict[str, Any]]:
    """The first replies of the batch as lines of samples.jsonl; `score/PART` where the reward has parts."""
    kl_N = reply_kl(experience)
    return [
        {
            "prompt": samples.prompts[row].messages[-1].content,
            "reply": samples.replies[row],
            "score": float(experience.scores_N[row]),
            "reward": float(experience.normalized_N[row]),
            "kl": float(kl_N[row]),
            "tokens": len(samples.reply_ids[row]),
            "finished": samples.finished[row],
            "category": samples.prompts[row].category,
            **{f"score/{name}": float(scores_N[row]) for name, scores_N in (parts or {}).items()},
        }
        for row in range(min(count, len(samples)))
    ]


class UpdateStats:
    """Collects the losses' statistics over the micro-batches of an update, under one prefix each."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._norms: dict[str, list[Tensor]] = {}

    def add(self, prefix: str, loss_sum: Tensor, stats: dict[str, Tensor]) -> None:
        """Add one micro-batch's sums."""
        part = {f"{prefix}/{key}": figure for key, figure in stats.items()}
        self._sums = merge_stats([self._sums, part, {f"{prefix}/loss": loss_sum.detach()}])

    def norm(self, name: str, norm: Tensor) -> None:
        """Add a figure that is the same on all ranks; its mean over the iteration is logged."""
        self._norms.setdefault(name, []).append(norm.detach())

    def over_ranks(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over what was counted on all ranks; a collective call when there are several."""
        sums = self._sums
        if accelerator.num_processes > 1 and sums:
            packed = torch.stack([figure.double() for figure in sums.values()])
            rows = accelerator.gather(packed[None])
            sums = merge_stats(dict(zip(sums, row, strict=True)) for row in rows)
        figures = {name: float(torch.stack(norms).mean()) for name, norms in self._norms.items()}
        for key, figure in sums.items():
            prefix, name = key.split("/")
            if name.endswith(("_max", "_min")):
                figures[key] = float(figure)
            elif name != "tokens":
                figures[key] = float(figure) / max(1.0, float(sums[f"{prefix}/tokens"]))
        return figures
