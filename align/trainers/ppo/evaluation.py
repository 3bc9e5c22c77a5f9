"""How good the policy is on held-out prompts, by the reward it is trained on and by its distance from the reference.

Replies are sampled at temperature 1 and top-p 1, where the k1 estimate is an unbiased KL in nats, and once greedily;
greedy replies are no samples, so along them the exact KL of the distributions at every token is summed. The seed of the
sampling does not depend on the iteration, so evaluations of one run are comparable. Every rank asks about a share of
the prompts; what is sampled depends on a prompt's place among all of them, so the figures are those of one process.

With `on_reward_error: mask` a reply that a reward fails on is in no mean of that reward's scores, and is counted.

A *gold* reward, where the trainer has one, scores the same replies, and a *judge* compares them with those of the
policy that training started from (`opponent.py`): `eval/win_rate`. Without a judge the gold reward decides; without
either there is no win rate, since what the reward itself thinks of the two is in `eval/score` already. Where a gold
reward is, `eval/rm_accuracy` says whether the reward still knows better from worse among the policy's own replies: how
often it prefers the one of a sampled and a greedy reply that the gold reward does. Gold reward and judge are asked
here and nowhere else, nothing is stopped or chosen by them, and the random generators are put back after them: training
is bit for bit the same with and without them.

A judge that fails stops the run, with everything saved, is asked again (`on_reward_error: retry`), or leaves its
replies without a verdict, which are counted (`mask`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from align.runtime.ranks import share
from align.trainers import sharding
from align.trainers.offload import Offload
from align.trainers.optimization import TrainedModel
from align.trainers.ppo.forward import reply_distribution, reply_full_kl, reply_logprobs, shares_prompts
from align.trainers.ppo.guards import Together, require_judged
from align.trainers.ppo.metrics import part_metrics
from align.trainers.ppo.minibatches import Room
from align.trainers.ppo.opponent import Opponent
from align.trainers.ppo.types import Samples, Scores, TokenBatch
from align.trainers.ppo.weight_sync import WeightSync
from data_formats.records import Prompt
from reward.judges.failures import ask
from reward.judges.protocol import Judge, Judgment, ReplyPair
from reward.judges.rewards import by_scores
from reward.protocol import Reward, RewardError, same_tokens
from rollouts.protocol import SamplingParams

WORTH = {"first": 0.0, "tie": 0.5, "second": 1.0, None: math.nan}  # of a judgment, to the second reply
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JudgedSamples:
    """Some replies and all that was said of them.

    Attributes:
        scores: of the reward; `gold`: of the gold reward, where there is one.
        judgments: of each reply as the second against the starting policy's; none where nobody compares them.
    """

    samples: Samples
    scores: Scores
    gold: Scores | None
    judgments: list[list[Judgment]]


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """One reply: its `figures` (end_rate, length, kl and entropy, both summed over its tokens), what the reward said of
    it, and each part of a composed one; the same of the gold reward; and what it is `worth` in each judgment (1, 0.5 or
    0; NaN without a verdict)."""

    figures: dict[str, float]
    score: float
    parts: dict[str, float]
    gold: float | None = None
    gold_parts: dict[str, float] = field(default_factory=dict)
    worth: tuple[float, ...] = ()


class Evaluation:
    """Asks policy, reward, gold reward and judge; what it keeps is the opponent's. Every rank calls it."""

    def __init__(
        self,
        policy: TrainedModel,
        reference: nn.Module,
        sync: WeightSync,
        opponent: Opponent,
        *,
        config: PPOConfig,
        tokenizer: Any,
        pad_id: int,
        seed: int,
        offload: Offload,
        accelerator: Accelerator,
    ):
        self.policy, self.reference, self.sync, self.opponent = policy, reference, sync, opponent
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
        judge: Judge | None,
        together: Together,
        *,
        version: int,
        iteration: int,
    ) -> dict[str, float]:
        """Mean score, end rate, length, KL and entropy of sampled and of greedy replies.

        Keys: `eval/score`, `eval/end_rate`, `eval/length` (tokens), `eval/kl` (nats a reply), `eval/entropy` (nats a
        token) and, with a gold reward, `eval/gold`; each with `_greedy` too. With `on_reward_error: mask` also how many
        replies have no score, `eval/failed`, and no gold score, `eval/gold_failed`. For each part of a composed reward
        `eval/score/PART/mean` and `…/std`, and under `eval/score_greedy`, `eval/gold` and `eval/gold_greedy`. Once the
        policy has moved, with a judge or a gold reward, `eval/win_rate`: wins and half of the ties against the starting
        policy's replies to the same prompts, over all judgments; `eval/no_verdict`, judgments that came to none, where
        there are some. Where replies differ in gold, `eval/rm_accuracy`. All ranks judge a share and return the same.

        Args:
            params: how replies are sampled in training.
            together: runs what may fail on one rank.
            version: of the policy's weights. iteration: after which they are, for messages.

        Raises:
            TrainingError: on every rank, when the engine, a reward or the judge fails on any, or a reward on more
                replies than may be masked.
        """
        prompts = list(prompts[: self.config.evaluation.limit])
        part = share(len(prompts), self.rank, self.world_size)
        mine, moment = prompts[part.start : part.stop], f"(evaluation after iteration {iteration})"
        figures, by_way = dict[str, float](), list[list[JudgedRow]]()

        def replies(way: SamplingParams) -> JudgedSamples | None:
            if not mine:
                return None
            samples = collect(mine, way)
            scores, golden = score(samples), self._gold_scores(gold, samples)
            return JudgedSamples(samples, scores, golden, self._judgments(judge, samples, golden, way, version))

        self.sync.push_if_new(version)
        for suffix, way in self._ways(params, num_samples, part.start).items():
            own = self._judged(lambda way=way: replies(way), together, way, moment)
            shares = gather_object([own]) if self.world_size > 1 else [own]
            rows = [row for rows, _ in shares for row in rows]
            by_way.append(rows)
            for failures in zip(*(failures for _, failures in shares), strict=True):  # of the reward, of the gold one
                try:
                    require_judged(sum(failures, ()), len(rows), quiet=True)
                except RewardError as problem:
                    raise TrainingError(f"{problem} {moment}") from problem
            figures |= _means(rows, suffix)
            if self.config.on_reward_error == "mask":
                figures |= _failed(rows, suffix)
        return figures | _reward_accuracy(*by_way)

    def _ways(self, params: SamplingParams, num_samples: int, first: int) -> dict[str, SamplingParams]:
        """How replies are sampled here, to the prompts from `first` on, by what the figures' names end with."""
        plain = replace(
            params,
            top_p=1.0,
            top_k=0,
            min_new_tokens=0,
            seed=derive(self.seed, "eval", 0),
            first=first,
            return_support=False,  # of the whole vocabulary, and nobody reads it here
        )
        return {"": replace(plain, n=num_samples, temperature=1.0), "_greedy": replace(plain, n=1, temperature=0.0)}

    def _judged(
        self, replies: Callable[[], JudgedSamples | None], together: Together, way: SamplingParams, moment: str
    ) -> tuple[list[JudgedRow], tuple[tuple[str, ...], tuple[str, ...]]]:
        """This rank's replies, and why the reward, and the gold one, failed on some of them."""
        try:
            with sharding.unsharded(*self.sync.sampled_modules):
                judged = together(replies)
        except TrainingError as problem:
            raise TrainingError(f"{problem} {moment}") from problem
        whole = sharding.unsharded(self.policy.module, self.reference)  # ranks have shares of unequal size
        with whole, self.offload.here("reference"):
            distances = together(lambda: judged and self._distances(judged.samples, way.n, exact=way.temperature == 0))
        if judged is None:
            return [], ((), ())
        samples, gold = judged.samples, judged.gold
        kls, entropies = distances
        rows = []
        for row, ids in enumerate(samples.reply_ids):
            figures = {"end_rate": float(samples.finished[row]), "length": float(len(ids))}
            figures |= {"kl": kls[row], "entropy": entropies[row]}
            worth = tuple(WORTH[one.winner] for one in judged.judgments[row]) if judged.judgments else ()
            golden = gold.row(row) if gold is not None else ()
            rows.append(JudgedRow(figures, *judged.scores.row(row), *golden, worth=worth))
        return rows, (judged.scores.failures, () if gold is None else gold.failures)

    def _gold_scores(self, gold: Reward | None, samples: Samples) -> Scores | None:
        """What the gold reward says, None without one; the random generators are left as they were."""
        if gold is None:
            return None
        with self._looking_on():
            with_ids = same_tokens(gold, self.tokenizer)
            return Scores.of(gold, samples, with_ids, self.config.on_reward_error, self.world_size)

    def _judgments(
        self, judge: Judge | None, samples: Samples, gold: Scores | None, way: SamplingParams, version: int
    ) -> list[list[Judgment]]:
        """What the judge, or else the gold reward, says of each reply against the starting policy's; the replies of a
        policy that has not moved are those that later ones are compared with."""
        scores, opening = None if gold is None else gold.total_N.tolist(), self.opponent.to(samples, way)
        if version == 0:
            if opening is None:
                self.opponent.keep(samples, scores, way)
            return []
        if judge is None and gold is None:
            return []
        if opening is None or (judge is None and opening.scores is None):
            logger.info("no win rate: the replies that this run began with are not known, or have no gold score")
            return []
        if judge is None:
            return [[by_scores(*pair)] for pair in zip(opening.scores, scores, strict=True)]
        with_ids = same_tokens(getattr(judge, "reward", None), self.tokenizer)
        sides = (one.for_reward(with_ids) for one in (opening.samples, samples))
        with self._looking_on():
            return ask(judge, [ReplyPair(*sides) for sides in zip(*sides, strict=True)], self.config.on_reward_error)

    @contextmanager
    def _looking_on(self) -> Iterator[None]:
        """Models that judge are on the accelerator for the while, and the random generators are left as they were."""
        generators = rng_state()
        try:
            with self.offload.here("reward"):
                yield
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
    return figures | _wins([worth for row in rows for worth in row.worth], suffix)


def _wins(worth: Sequence[float], suffix: str) -> dict[str, float]:
    missing = sum(map(math.isnan, worth))
    figures = {f"eval/win_rate{suffix}": _mean(worth)} if missing < len(worth) else {}
    return figures | ({f"eval/no_verdict{suffix}": float(missing)} if missing else {})


def _reward_accuracy(sampled: Sequence[JudgedRow], greedy: Sequence[JudgedRow]) -> dict[str, float]:
    """How often the reward prefers the better, by the gold reward, of a sampled reply and the greedy one to the same
    prompt; equal scores are half right. Nothing without a gold reward, or where none is better."""
    each, worth = len(sampled) // len(greedy), []
    for at, one in enumerate(sampled):
        other = greedy[at // each]
        if one.gold is None or other.gold is None:
            return {}
        margin, better_by = one.score - other.score, one.gold - other.gold
        if better_by and not math.isnan(margin * better_by):
            worth.append(0.5 if margin == 0 else float(margin * better_by > 0))
    return {"eval/rm_accuracy": fmean(worth)} if worth else {}


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
