"""How good the policy is on held-out prompts, by the reward it is trained on and by its distance from the reference.

Replies are sampled at temperature 1 and top-p 1, where the k1 estimate is an unbiased KL in nats, and once greedily;
greedy replies are no samples, so along them the exact KL of the distributions at every token is summed. The seed of the
sampling does not depend on the iteration, so evaluations of one run are comparable.

With `on_reward_error: mask` a reply that a reward fails on is in no mean of that reward's scores, and is counted.

A *gold* reward, where the trainer has one, judges the same replies. It is asked here and nowhere else, and the random
generators are put back after it: training is bit for bit the same with and without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import Tensor

from align.functional import kl_estimate, masked_sum
from align.runs.errors import TrainingError
from align.runs.seeding import derive, rng_state, set_rng_state
from align.trainers import sharding
from align.trainers.engine_sync import push_current, sampled_modules
from align.trainers.experience import Samples, Scores, TokenBatch, require_judged
from align.trainers.forward import reply_distribution, reply_full_kl, reply_logprobs
from align.trainers.minibatches import rank_share
from align.trainers.ppo_metrics import part_metrics
from data_formats.records import Prompt
from reward.protocol import RewardError, same_tokens
from rollouts.protocol import SamplingParams

if TYPE_CHECKING:
    from align.trainers.ppo import PPOTrainer


@dataclass(frozen=True, slots=True)
class Judged:
    """One reply: its `figures` (end_rate, length, kl and entropy, both summed over its tokens), what the reward said of
    it, and each part of a composed one; the same of the gold reward."""

    figures: dict[str, float]
    score: float
    parts: dict[str, float]
    gold: float | None = None
    gold_parts: dict[str, float] = field(default_factory=dict)


def evaluate_policy(trainer: PPOTrainer, prompts: Sequence[Prompt], num_samples: int = 1) -> dict[str, float]:
    """Mean score, end rate, length, KL and entropy of sampled and of greedy replies.

    Keys: `eval/score`, `eval/end_rate`, `eval/length` (tokens), `eval/kl` (nats a reply), `eval/entropy` (nats a token)
    and, with a gold reward, `eval/gold`; each with `_greedy` too. With `on_reward_error: mask` also how many replies
    have no score, `eval/failed`, and no gold score, `eval/gold_failed`. For each part of a composed reward
    `eval/score/PART/mean` and `…/std`, and under `eval/score_greedy`, `eval/gold` and `eval/gold_greedy`. Every rank
    judges its share; all return the same.

    Raises:
        TrainingError: on every rank, when the engine or the reward fails on any, or on more replies than may be masked.
    """
    section = trainer.config.evaluation
    prompts = list(prompts[: section.limit])
    mine = [prompts[index] for index in rank_share([0] * len(prompts), trainer.rank, trainer.world_size)]
    plain = replace(
        trainer.sampling_params(),
        top_p=1.0,
        top_k=0,
        min_new_tokens=0,
        seed=derive(trainer.seed, "eval", trainer.rank),
        return_support=False,  # of the whole vocabulary, and nobody reads it here
    )
    ways = {"": replace(plain, n=num_samples, temperature=1.0), "_greedy": replace(plain, n=1, temperature=0.0)}
    figures: dict[str, float] = {}
    push_current(trainer)
    for suffix, params in ways.items():
        own = _judged(trainer, mine, params)
        shares = gather_object([own]) if trainer.world_size > 1 else [own]
        rows = [row for rows, _ in shares for row in rows]
        for failures in zip(*(failures for _, failures in shares), strict=True):  # of the reward, of the gold one
            try:
                require_judged(sum(failures, ()), len(rows), quiet=True)
            except RewardError as problem:
                raise TrainingError(f"{problem} {_moment(trainer)}") from problem
        figures |= _means(rows, suffix)
        if trainer.config.on_reward_error == "mask":
            figures |= _failed(rows, suffix)
    return figures


def _judged(
    trainer: PPOTrainer, prompts: Sequence[Prompt], params: SamplingParams
) -> tuple[list[Judged], tuple[tuple[str, ...], tuple[str, ...]]]:
    """This rank's replies, and why the reward, and the gold one, failed on some of them."""

    def work() -> tuple[Samples, Scores, Scores | None]:
        samples = trainer.collect(prompts, params)
        return samples, trainer.score(samples), gold_scores(trainer, samples)

    try:
        with sharding.unsharded(*sampled_modules(trainer)):
            judged = trainer.together(lambda: work() if prompts else None)
    except TrainingError as problem:
        raise TrainingError(f"{problem} {_moment(trainer)}") from problem
    whole = sharding.unsharded(trainer.policy.module, trainer.reference)  # ranks have shares of unequal size
    with whole, trainer.offload.here("reference"):
        exact = params.temperature == 0
        distances = trainer.together(lambda: judged and _distances(trainer, judged[0], exact=exact))
    if judged is None:
        return [], ((), ())
    samples, scores, gold = judged
    kls, entropies = distances
    rows = []
    for row, ids in enumerate(samples.reply_ids):
        figures = {"end_rate": float(samples.finished[row]), "length": float(len(ids))}
        figures |= {"kl": kls[row], "entropy": entropies[row]}
        rows.append(Judged(figures, *scores.row(row), *(gold.row(row) if gold is not None else ())))
    return rows, (scores.failures, () if gold is None else gold.failures)


def _moment(trainer: PPOTrainer) -> str:
    return f"(evaluation after iteration {trainer.state.global_step})"


def gold_scores(trainer: PPOTrainer, samples: Samples) -> Scores | None:
    """What the gold reward says, None without one; the random generators are left as they were."""
    if trainer.gold is None:
        return None
    generators = rng_state()
    try:
        with trainer.offload.here("reward"):
            with_ids = same_tokens(trainer.gold, trainer.tokenizer)
            return Scores.of(trainer.gold, samples, with_ids, trainer.config.on_reward_error, trainer.world_size)
    finally:
        set_rng_state(generators)


def _means(rows: Sequence[Judged], suffix: str) -> dict[str, float]:
    means = {f"eval/{name}{suffix}": fmean(row.figures[name] for row in rows) for name in rows[0].figures}
    means[f"eval/entropy{suffix}"] /= means[f"eval/length{suffix}"]  # a token
    figures = {f"eval/score{suffix}": _mean(row.score for row in rows), **means}
    figures |= _part_means([row.parts for row in rows], f"eval/score{suffix}")
    if rows[0].gold is not None:
        figures[f"eval/gold{suffix}"] = _mean(row.gold for row in rows)
        figures |= _part_means([row.gold_parts for row in rows], f"eval/gold{suffix}")
    return figures


def _mean(scores: Iterable[float]) -> float:
    return fmean(score for score in scores if not math.isnan(score))


def _failed(rows: Sequence[Judged], suffix: str) -> dict[str, float]:
    figures = {f"eval/failed{suffix}": float(sum(math.isnan(row.score) for row in rows))}
    if rows[0].gold is not None:
        figures[f"eval/gold_failed{suffix}"] = float(sum(math.isnan(row.gold) for row in rows))
    return figures


def _part_means(rows: Sequence[dict[str, float]], prefix: str) -> dict[str, float]:
    """Of a row that a reward failed on no part is known, or NaN."""
    names = dict.fromkeys(name for said in rows for name in said)
    parts = {name: [said.get(name, math.nan) for said in rows] for name in names}
    return part_metrics({name: torch.tensor(said, dtype=torch.float64) for name, said in parts.items()}, prefix)


@torch.no_grad()
def _distances(trainer: PPOTrainer, samples: Samples, exact: bool) -> tuple[list[float], list[float]]:
    """KL (k1, or the exact one at every token) and entropy of each reply, both summed over its tokens, nats."""
    tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids, trainer.pad_id).to(trainer.accelerator.device)
    order = torch.argsort(tokens.lengths_N, descending=True)
    kl_N, entropy_N = torch.zeros(len(samples)), torch.zeros(len(samples))
    for rows_B in order.split(trainer.config.micro_batch_size):
        kl_N[rows_B.cpu()], entropy_N[rows_B.cpu()] = _distance(trainer, tokens.rows(rows_B), exact)
    return kl_N.tolist(), entropy_N.tolist()


def _distance(trainer: PPOTrainer, batch: TokenBatch, exact: bool) -> tuple[Tensor, Tensor]:
    module, mask_BS = trainer.policy.module, batch.mask_NS
    policy = reply_distribution(module, batch, 1.0, entropy=True)
    if exact:
        kl_BS = reply_full_kl(module, trainer.reference, batch, 1.0)
    else:
        kl_BS = kl_estimate(policy.full, reply_logprobs(trainer.reference, batch, 1.0), "k1")
    return masked_sum(kl_BS, mask_BS, dim=1).float().cpu(), masked_sum(policy.entropy, mask_BS, dim=1).float().cpu()
