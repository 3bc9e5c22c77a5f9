"""The figures PPO logs. All are means over real reply tokens or replies of the whole global batch, never over padding.

Rollout figures come from the experience, which every rank holds in full; update figures are sums of the losses'
statistics over micro-batches and ranks, divided by what they counted. nats and values are of the distribution divided
by the sampling temperature, over the whole vocabulary; the score is in the reward's own unit.

Rollouts, before the update (without a critic no value/… and no returns/std):
    score/mean, score/std        the reward as it was given; score/PART/… what each part of a composed one said
    reward/failed                replies that it failed on, which are in no figure of score and reward
                                 (`on_reward_error: mask`)
    reward/mean, reward/std      after missing-end penalty, normalisation and clip
    kl/reply, kl/token           log policy - log reference of the sampled tokens (k1): sum a reply, mean a token
    kl/k3_token                  the estimator that is never negative, a token
    kl/full_token                KL(policy || reference) over the whole vocabulary, exact, a token of
                                 four replies drawn at random
    kl_coef                      what the KL was multiplied by
    entropy                      nats a token
    value/mean                   the critic before the update, a token
    value/explained_variance     1 - (mean squared error of these values) / (variance of the returns)
    returns/std, advantages/std  a token; advantages before whitening
    length/mean, length/max      tokens a reply, the drawn end token included
    end_rate                     share of replies that the policy ended itself
    distinct                     share of different replies
    distinct_1, distinct_2       different tokens, and pairs of neighbours, of all replies by how many there are in all
                                 (Li et al. 2016, arXiv 1510.03055); they fall as the policy repeats itself
    kept_mass/mean               share of the distribution that top-p, top-k and held-back ends left, a sampled token
    engine/logp_diff_mean, engine/logp_diff_max
                                 |engine - trainer| of a sampled token's log-probability
    engine/probe_max             the same of a token of one fixed sequence, the largest, after the update's weights were
                                 pushed; engines with weights of their own
    engine/staleness             the policy's optimizer steps since the weights that made a reply, a mean: 0 without
                                 `rollout.overlap`, those of so many iterations with it

Update, means over its optimizer steps (those of the policy are missing while the critic warms up, those of a critic
where there is none):
    policy/loss, value/loss, ptx/loss   a token (or a reply, as `loss_aggregation` says)
    policy/clipped, value/clipped       share of tokens whose ratio or value was clipped
    policy/dual_clipped                 share of tokens whose loss `dual_clip` bounded
    policy/approx_kl                    k3 of the policy before the update from the one being trained
    policy/ratio, policy/ratio_max, policy/ratio_min
                                        new over old probability of the sampled tokens
    policy/grad_norm, value/grad_norm   before clipping
    value/value, value/squared_error    the critic in training, and its squared distance from the returns, a token
    kl_loss/loss, kl_loss/estimate      the KL term of `kl_in: loss` and its estimator, a token
    entropy/token                       of the policy in training, nats
    importance/mean, importance/max, importance/truncated
                                        weight of a token (`importance_sampling_correction`) after the cap, share above
    importance/ess                      effective sample size of these weights, as a share of the tokens: 1 when all
                                        weigh the same
    ptx/max_z                           square of the largest logit, a token (`ptx_max_z_coef`; in ptx/loss times that)
    ptx/coef, ptx/grad_norm_ratio       the factor of the ptx loss; norm of its gradient over that of PPO's
    steps_left_out, steps_not_finite    optimizer steps that `target_kl` left out, and that `guards.non_finite: skip`
                                        did (only where there were some)
    lr/policy, lr/critic, optimizer_steps, warming_up
                                        as they are after the iteration

Held-out prompts (`align.trainers.ppo.evaluation`), at temperature 1 and, with _greedy, greedily:
    eval/score, eval/gold, eval/kl (a reply), eval/entropy (a token), eval/length, eval/end_rate; of a composed reward
    eval/score/PART/mean and …/std; with `on_reward_error: mask` eval/failed, eval/gold_failed
    eval/win_rate                       wins and half of the ties against the starting policy's replies, by the judge
                                        or else the gold reward, once the policy has moved
    eval/rm_accuracy                    how often the reward prefers the better, by the gold reward, of the sampled and
                                        the greedy reply to a prompt
    eval/no_verdict                     judgments that came to none (only where there were some)

Cost:
    seconds/PHASE, seconds/total        wall clock of the first rank
    seconds/sync                        of seconds/update: pushing weights to an engine that has its own, and the probe
    seconds/wait                        of seconds/update: for the next replies to be finished (`rollout.overlap`, with
                                        which seconds/rollout is next to nothing after the first iteration)
    tokens_per_second/PHASE, tokens_per_second
                                        tokens of prompts and replies of the iteration by the seconds of a phase, of all
    memory/peak_gib                                   the most this process has held so far: on the GPU by torch's own
                                                      count, without one by the system's
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from align.functional import Moments, explained_variance, kl_estimate, masked_mean, masked_sum, masked_var
from align.runtime.memory import peak_memory_gib
from align.trainers.ppo.losses import SQUARED_WEIGHT, Figures
from align.trainers.ppo.types import Experience, Samples


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
        """`seconds/PHASE`, their sum, and tokens (prompt and reply) a second, by phase and in all."""
        total = sum(self.seconds.values())
        named = {f"seconds/{phase}": seconds for phase, seconds in self.seconds.items()}
        speeds = {f"tokens_per_second/{phase}": tokens / seconds for phase, seconds in self.seconds.items() if seconds}
        return {**named, "seconds/total": total, **speeds, "tokens_per_second": tokens / total if total else 0.0}


def reply_kl(experience: Experience, kind: str = "k1") -> Tensor:
    """kl_N: nats a reply, summed over its tokens (k1: log policy - log reference)."""
    kl_NS = kl_estimate(experience.policy_logps_NS, experience.ref_logps_NS, kind)
    return masked_sum(kl_NS, experience.tokens.mask_NS, dim=1)


def distinct_share(replies: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams (n = 1 or 2) of tokens by how many there are in all replies; 0 where there are none."""
    grams = [gram for ids in replies for gram in (ids if n == 1 else pairwise(ids))]
    return len(set(grams)) / max(1, len(grams))


def kept_mass_metrics(samples: Samples) -> dict[str, float]:
    """`kept_mass/mean`; nothing where the engine has not told it of every reply."""
    if any(masses is None for masses in samples.kept_mass):
        return {}
    return {"kept_mass/mean": fmean(mass for masses in samples.kept_mass for mass in masses)}


def peak_memory(device: torch.device) -> dict[str, float]:
    """`memory/peak_gib` of this process; empty where the system does not say."""
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else peak_memory_gib()
    return {} if peak is None else {"memory/peak_gib": round(peak, 2)}


def rollout_metrics(samples: Samples, experience: Experience, advantages_std: float) -> dict[str, float]:
    """What the replies of one iteration look like, before the update: all of them, those that are masked too."""
    lengths_N = experience.tokens.mask_NS.sum(1).float()
    judged_N = ~experience.scores_N.isnan()
    figures = {
        "score/mean": experience.scores_N[judged_N].mean(),
        "score/std": experience.scores_N[judged_N].std(unbiased=False),
        "reward/mean": experience.normalized_N[judged_N].mean(),
        "reward/std": experience.normalized_N[judged_N].std(unbiased=False),
        **_value_metrics(experience),
        "advantages/std": advantages_std,
        "length/mean": lengths_N.mean(),
        "length/max": lengths_N.max(),
        "end_rate": sum(samples.finished) / len(samples),
        "distinct": len(set(samples.reply_ids)) / len(samples),
        "distinct_1": distinct_share(samples.reply_ids, 1),
        "distinct_2": distinct_share(samples.reply_ids, 2),
        **kept_mass_metrics(samples),
    }
    return {key: float(figure) for key, figure in figures.items()}


def policy_metrics(samples: Samples, experience: Experience, entropy_NS: Tensor) -> dict[str, float]:
    """What the policy that sampled these replies says of them; and how far from that what the engine said is."""
    mask_NS, kl_N = experience.tokens.mask_NS, reply_kl(experience)
    figures = {
        "kl/reply": kl_N.mean(),
        "kl/token": kl_N.sum() / mask_NS.sum(),
        "kl/k3_token": reply_kl(experience, "k3").sum() / mask_NS.sum(),
        "entropy": masked_mean(entropy_NS, mask_NS),
    }
    return {key: float(figure) for key, figure in figures.items()} | engine_metrics(samples, experience)


def _value_metrics(experience: Experience) -> dict[str, Tensor | float]:
    values_NS, returns_NS, learnt_NS = experience.old_values_NS, experience.returns_NS, experience.mask_NS
    if values_NS is None or returns_NS is None:
        return {}
    error = masked_sum((values_NS - returns_NS).square(), learnt_NS)
    return {
        "value/mean": masked_mean(values_NS, experience.tokens.mask_NS),
        "value/explained_variance": explained_variance(error, Moments.of(returns_NS, learnt_NS)),
        "returns/std": masked_var(returns_NS, learnt_NS).sqrt(),
    }


def engine_metrics(samples: Samples, experience: Experience) -> dict[str, float]:
    """How far the engine's log-probabilities are from the trainer's, nats a token; nothing where it gave none."""
    if any(logps is None for logps in samples.engine_logps):
        return {}
    mask_NS = experience.tokens.mask_NS
    apart_NS = (experience.tokens.on_actions(samples.engine_logps) - experience.policy_logps_NS).abs()
    return {
        "engine/logp_diff_mean": float(masked_mean(apart_NS, mask_NS)),
        "engine/logp_diff_max": float(apart_NS[mask_NS].max()),
    }


def staleness(samples: Samples, policy_version: int) -> dict[str, float]:
    """`engine/staleness` of replies that a policy of this version learns from; nothing where a reply has no version."""
    if any(version is None for version in samples.weight_versions):
        return {}
    return {"engine/staleness": fmean(policy_version - version for version in samples.weight_versions)}


def part_metrics(parts: dict[str, Tensor], prefix: str = "score") -> dict[str, float]:
    """`PREFIX/PART/mean` and `PREFIX/PART/std` (population) of what each part of the reward said, in its own unit, over
    the replies that it did not fail on."""
    figures = {}
    for name, scores_N in parts.items():
        scores_N = scores_N[~scores_N.isnan()]
        figures[f"{prefix}/{name}/mean"] = float(scores_N.mean())
        figures[f"{prefix}/{name}/std"] = float(scores_N.std(unbiased=False))
    return figures


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, such that all of them in a row are the text of the whole.

    Where tokens share a character (byte-level vocabularies cut them), the last one has it and the others are empty.
    """
    texts: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd") or len(waiting) == 4  # no character has more than four bytes
        texts.append(text if whole else "")
        waiting = [] if whole else waiting
    if waiting:
        texts[-1] = text
    return texts


def token_rows(tokenizer: Any, ids: Sequence[int], kls: Sequence[float]) -> list[list[Any]]:
    """[text, KL in nats] of each token of a reply."""
    rounded = [round(kl, 4) for kl in kls]
    return [list(pair) for pair in zip(token_texts(tokenizer, ids), rounded, strict=True)]


def sample_rows(
    samples: Samples, experience: Experience, tokenizer: Any, count: int, parts: dict[str, Tensor] | None = None
) -> list[dict[str, Any]]:
    """The first replies of the batch as lines of samples.jsonl; `score/PART` where the reward has parts.

    `tokens` holds the text of every token with its k1 (log policy - log reference, nats), which add up to `kl`. `score`
    and `reward` are null where the reward failed.
    """
    kl_N = reply_kl(experience).tolist()
    kl_NS = kl_estimate(experience.policy_logps_NS, experience.ref_logps_NS, "k1")
    mask_NS = experience.tokens.mask_NS
    return [
        {
            "prompt": samples.prompts[row].messages[-1].content,
            "reply": samples.replies[row],
            "score": _known(experience.scores_N[row]),
            "reward": None if experience.scores_N[row].isnan() else float(experience.normalized_N[row]),
            "kl": kl_N[row],
            "reply_tokens": len(samples.reply_ids[row]),
            "finished": samples.finished[row],
            "category": samples.prompts[row].category,
            **{f"score/{name}": _known(scores_N[row]) for name, scores_N in (parts or {}).items()},
            "tokens": token_rows(tokenizer, samples.reply_ids[row], kl_NS[row][mask_NS[row]].tolist()),
        }
        for row in range(min(count, len(samples)))
    ]


def _known(score: Tensor) -> float | None:
    """None for a score that is none (NaN)."""
    return None if score.isnan() else float(score)


class UpdateMetrics:
    """Collects what an update tells the log."""

    def __init__(self) -> None:
        self._figures: Figures = {}
        self._steps: dict[str, list[Tensor]] = {}
        self._counts: dict[str, int] = {}

    def add(self, figures: Figures) -> None:
        """Join figures of one micro-batch of this rank."""
        for name, figure in figures.items():
            self._figures[name] = self._figures[name].with_other(figure) if name in self._figures else figure

    def note(self, name: str, figure: Tensor) -> None:
        """Add a number of one optimizer step that is the same on all ranks; their mean is logged."""
        self._steps.setdefault(name, []).append(figure.detach())

    def count(self, name: str, number: int = 1) -> None:
        """Count events that all ranks see."""
        self._counts[name] = self._counts.get(name, 0) + number

    def over_ranks(self, accelerator: Accelerator) -> dict[str, float]:
        """Every figure by name, of all ranks; a collective call when there are several."""
        figures = self._figures
        if accelerator.num_processes > 1 and figures:
            packed = torch.stack([part.double() for one in figures.values() for part in (one.amount, one.count)])
            first, *others = accelerator.gather(packed[None])
            figures = _unpacked(figures, first)
            for row in others:
                figures = {name: figures[name].with_other(one) for name, one in _unpacked(figures, row).items()}
        found = {name: float(torch.stack(steps).mean()) for name, steps in self._steps.items()}
        found |= {name: float(count) for name, count in self._counts.items()}
        values = {name: figure.value() for name, figure in figures.items()}
        return with_effective(found | {name: value for name, value in values.items() if value is not None})


def with_effective(found: dict[str, float]) -> dict[str, float]:
    """The figures with `importance/ess` in place of the mean square of the weights: Kish's effective sample size
    (Survey Sampling, 1965) by the number of tokens, (mean w)^2 / mean w^2."""
    square = found.pop(SQUARED_WEIGHT, None)
    return found if not square else found | {"importance/ess": found["importance/mean"] ** 2 / square}


def _unpacked(like: Figures, packed: Tensor) -> Figures:
    pairs = packed.view(-1, 2)
    return {name: type(figure)(*pair) for (name, figure), pair in zip(like.items(), pairs, strict=True)}
