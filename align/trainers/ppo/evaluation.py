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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from align.functional import kl_estimate, masked_sum
from align.recipe.ppo_section import PPOConfig
from align.runs.errors import TrainingError
from align.runs.seeding import derive, rng_state, set_rng_state
from align.trainers import sharding
from align.trainers.offload import Offload
from align.trainers.optimization import TrainedModel
from align.trainers.ppo.forward import reply_distribution, reply_full_kl, reply_logprobs, shares_prompts
from align.trainers.ppo.guards import Together, require_judged
from align.trainers.ppo.metrics import part_metrics
from align.trainers.ppo.minibatches import Room, rank_share
from align.trainers.ppo.types import Samples, Scores, TokenBatch
from align.trainers.ppo.weight_sync import WeightSync
from data_formats.records import Prompt
from reward.protocol import Reward, RewardError, same_tokens
from rollouts.protocol import SamplingParams

Replies = tuple[Samples, Scores, Scores | None]  # what the reward said of them, and the gold one where there is one


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """One reply: its `figures` (end_rate, length, kl and entropy, both summed over its tokens), what the reward said of
    it, and each part of a composed one; the same of the gold reward."""

    figures: dict[str, float]
    score: float
    parts: dict[str, float]
    gold: float | None = None
    gold_parts: dict[str, float] = field(default_factory=dict)


class Evaluation:
    """Asks policy, reward and gold reward; has no state of its own. Every rank calls it."""

    def __init__(
        self,
        policy: TrainedModel,
        reference: nn.Module,
        sync: WeightSync,
        *,
        config: PPOConfig,
        tokenizer: Any,
        pad_id: int,
        seed: int,
        offload: Offload,
        accelerator: Accelerator,
    ):
        self.policy, self.reference, self.sync = policy, reference, sync
        self.config, self.tokenizer, self.pad_id, self.seed = config, tokenizer, pad_id, seed
        self.offload, self.accelerator = offload, accelerator
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes

    def figures(
        self,
        prompts: Sequence[Prompt],
        num_samples: int,
        params: SamplingParams,
        collect: Callable[[Sequence[Prompt], SamplingParams], Samples],
        score: Callable[[Samples], Scores],
        gold: Reward | None,
        together: Together,
        *,
        version: int,
        iteration: int,
    ) -> dict[str, float]:
        """Mean score, end rate, length, KL and entropy of sampled and of greedy replies.

        Keys: `eval/score`, `eval/end_rate`, `eval/length` (tokens), `eval/kl` (nats a reply), `eval/entropy` (nats a
        token) and, with a gold reward, `eval/gold`; each with `_greedy` too. With `on_reward_error: mask` also how many
        replies have no score, `eval/failed`, and no gold score, `eval/gold_failed`. For each part of a composed reward
        `eval/score/PART/mean` and `…/std`, and under `eval/score_greedy`, `eval/gold` and `eval/gold_greedy`. Every
        rank judges its share; all return the same.

        Args:
            params: how replies are sampled in training.
            together: runs what may fail on one rank.
            version: of the policy's weights. iteration: after which they are, for messages.

        Raises:
            TrainingError: on every rank, when the engine or the reward fails on any, or on more replies than may be
                masked.
        """
        prompts = list(prompts[: self.config.evaluation.limit])
        mine = [prompts[index] for index in rank_share([0] * len(prompts), self.rank, self.world_size)]
        moment = f"(evaluation after iteration {iteration})"
        figures: dict[str, float] = {}

        def replies(way: SamplingParams) -> Replies | None:
            if not mine:
                return None
            samples = collect(mine, way)
            return samples, score(samples), self._gold_scores(gold, samples)

        self.sync.push_if_new(version)
        for suffix, way in self._ways(params, num_samples).items():
            own = self._judged(lambda way=way: replies(way), together, way, moment)
            shares = gather_object([own]) if self.world_size > 1 else [own]
            rows = [row for rows, _ in shares for row in rows]
            for failures in zip(*(failures for _, failures in shares), strict=True):  # of the reward, of the gold one
                try:
                    require_judged(sum(failures, ()), len(rows), quiet=True)
                except RewardError as problem:
                    raise TrainingError(f"{problem} {moment}") from problem
            figures |= _means(rows, suffix)
            if self.config.on_reward_error == "mask":
                figures |= _failed(rows, suffix)
        return figures

    def _ways(self, params: SamplingParams, num_samples: int) -> dict[str, SamplingParams]:
        """How replies are sampled here, by what the figures' names end with."""
        plain = replace(
            params,
            top_p=1.0,
            top_k=0,
            min_new_tokens=0,
            seed=derive(self.seed, "eval", self.rank),
            return_support=False,  # of the whole vocabulary, and nobody reads it here
        )
        return {"": replace(plain, n=num_samples, temperature=1.0), "_greedy": replace(plain, n=1, temperature=0.0)}

    def _judged(
        self, replies: Callable[[], Replies | None], together: Together, way: SamplingParams, moment: str
    ) -> tuple[list[JudgedRow], tuple[tuple[str, ...], tuple[str, ...]]]:
        """This rank's replies, and why the reward, and the gold one, failed on some of them."""
        try:
            with sharding.unsharded(*self.sync.sampled_modules):
                judged = together(replies)
        except TrainingError as problem:
            raise TrainingError(f"{problem} {moment}") from problem
        whole = sharding.unsharded(self.policy.module, self.reference)  # ranks have shares of unequal size
        with whole, self.offload.here("reference"):
            distances = together(lambda: judged and self._distances(judged[0], way.n, exact=way.temperature == 0))
        if judged is None:
            return [], ((), ())
        samples, scores, gold = judged
        kls, entropies = distances
        rows = []
        for row, ids in enumerate(samples.reply_ids):
            figures = {"end_rate": float(samples.finished[row]), "length": float(len(ids))}
            figures |= {"kl": kls[row], "entropy": entropies[row]}
            rows.append(JudgedRow(figures, *scores.row(row), *(gold.row(row) if gold is not None else ())))
        return rows, (scores.failures, () if gold is None else gold.failures)

    def _gold_scores(self, gold: Reward | None, samples: Samples) -> Scores | None:
        """What the gold reward says, None without one; the random generators are left as they were."""
        if gold is None:
            return None
        generators = rng_state()
        try:
            with self.offload.here("reward"):
                with_ids = same_tokens(gold, self.tokenizer)
                return Scores.of(gold, samples, with_ids, self.config.on_reward_error, self.world_size)
        finally:
            set_rng_state(generators)

    @torch.no_grad()
    def _distances(self, samples: Samples, num_samples: int, exact: bool) -> tuple[list[float], list[float]]:
        """KL (k1, or the exact one at every token) and entropy of each reply, both summed over its tokens, nats."""
        tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids, self.pad_id, num_samples)
        room = Room.of(tokens, self.config, shares_prompts(self.policy.raw, self.reference))
        (mine,) = room.shares(list(range(len(samples))), 1)
        tokens = tokens.to(self.accelerator.device)
        kl_N, entropy_N = torch.zeros(len(samples)), torch.zeros(len(samples))
        for rows in room.micro_batches(mine):
            kl_N[rows], entropy_N[rows] = self._distance(tokens.rows(torch.tensor(rows)), exact)
        return kl_N.tolist(), entropy_N.tolist()

    def _distance(self, batch: TokenBatch, exact: bool) -> tuple[Tensor, Tensor]:
        module, mask_BS = self.policy.module, batch.mask_NS
        policy = reply_distribution(module, batch, 1.0, entropy=True)
        if exact:
            kl_BS = reply_full_kl(module, self.reference, batch, 1.0)
        else:
            kl_BS = kl_estimate(policy.full, reply_logprobs(self.reference, batch, 1.0), "k1")
        return masked_sum(kl_BS, mask_BS, dim=1).float().cpu(), masked_sum(policy.entropy, mask_BS, dim=1).float().cpu()


def _means(rows: Sequence[JudgedRow], suffix: str) -> dict[str, float]:
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


def _failed(rows: Sequence[JudgedRow], suffix: str) -> dict[str, float]:
    figures = {f"eval/failed{suffix}": float(sum(math.isnan(row.score) for row in rows))}
    if rows[0].gold is not None:
        figures[f"eval/gold_failed{suffix}"] = float(sum(math.isnan(row.gold) for row in rows))
    return figures


def _part_means(rows: Sequence[dict[str, float]], prefix: str) -> dict[str, float]:
    """Of a row that a reward failed on no part is known, or NaN."""
    names = dict.fromkeys(name for said in rows for name in said)
    parts = {name: [said.get(name, math.nan) for said in rows] for name in names}
    return part_metrics({name: torch.tensor(said, dtype=torch.float64) for name, said in parts.items()}, prefix)
