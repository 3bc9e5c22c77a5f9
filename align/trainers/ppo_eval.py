"""How good the policy is on held-out prompts, by the reward it is trained on and by its distance from the reference.

Replies are sampled at temperature 1 and top-p 1, where the k1 estimate is an unbiased KL in nats, and once greedily.
The seed of the sampling does not depend on the iteration, so evaluations of one run are comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object
from torch import Tensor

from align.functional import kl_estimate, masked_sum
from align.runs.errors import TrainingError
from align.runs.seeding import derive
from align.trainers.experience import Samples, Scores, TokenBatch
from align.trainers.forward import reply_distribution, reply_logprobs
from align.trainers.minibatches import rank_share
from align.trainers.ppo_metrics import part_metrics
from data_formats.records import Prompt

if TYPE_CHECKING:
    from align.trainers.ppo import PPOTrainer

Rows = list[tuple[tuple[float, ...], dict[str, float]]]


def evaluate_policy(trainer: PPOTrainer, prompts: Sequence[Prompt], num_samples: int = 1) -> dict[str, float]:
    """Mean score, end rate and length of sampled and greedy replies; KL and entropy of the sampled ones.

    Keys: `eval/score`, `eval/score_greedy`, `eval/end_rate`, `eval/length`, `eval/kl` (nats a reply), `eval/entropy`
    (nats a token), and the greedy ones; for each part of a composed reward `eval/score/PART/mean` and `…/std`, and
    under `eval/score_greedy`. Every rank judges its share; all return the same.

    Raises:
        TrainingError: on every rank, when the engine or the reward fails on any.
    """
    section = trainer.config.evaluation
    prompts = list(prompts[: section.limit])
    mine = [prompts[index] for index in rank_share([0] * len(prompts), trainer.rank, trainer.world_size)]
    plain = replace(
        trainer.sampling_params(), top_p=1.0, top_k=0, min_new_tokens=0, seed=derive(trainer.seed, "eval", trainer.rank)
    )
    rows: dict[str, Rows] = {}
    rows["sampled"] = _judged(trainer, mine, replace(plain, n=num_samples, temperature=1.0), kl=True)
    rows["greedy"] = _judged(trainer, mine, replace(plain, n=1, temperature=0.0), kl=False)
    figures: dict[str, float] = {}
    for kind, own in rows.items():
        everything = gather_object(own) if trainer.world_size > 1 else own
        figures |= _means(everything, "_greedy" if kind == "greedy" else "")
    return figures


def _judged(trainer: PPOTrainer, prompts: Sequence[Prompt], params, kl: bool) -> Rows:
    """(score, finished, tokens, KL of the reply, summed entropy) of each reply, and what the reward's parts said."""

    def work() -> tuple[Samples, Scores]:
        samples = trainer.collect(prompts, params)
        return samples, trainer.score(samples)

    try:
        judged = trainer.together(lambda: work() if prompts else None)
    except TrainingError as problem:
        raise TrainingError(f"{problem} (evaluation after iteration {trainer.state.global_step})") from problem
    if judged is None:
        return []
    samples, scores = judged
    lengths = [len(ids) for ids in samples.reply_ids]
    kls, entropies = _distances(trainer, samples) if kl else ([0.0] * len(samples), [0.0] * len(samples))
    finished = map(float, samples.finished)
    figures = zip(scores.total_N.tolist(), finished, map(float, lengths), kls, entropies, strict=True)
    parts = ({name: float(part_N[row]) for name, part_N in scores.parts.items()} for row in range(len(samples)))
    return list(zip(figures, parts, strict=True))


def _means(rows: Rows, suffix: str) -> dict[str, float]:
    count = len(rows)
    score, finished, tokens, kl, entropy = (sum(column) for column in zip(*(row for row, _ in rows), strict=True))
    parts = {name: torch.tensor([own[name] for _, own in rows], dtype=torch.float64) for name in rows[0][1]}
    figures = {
        f"eval/score{suffix}": score / count,
        f"eval/end_rate{suffix}": finished / count,
        f"eval/length{suffix}": tokens / count,
        **part_metrics(parts, f"eval/score{suffix}"),
    }
    return figures if suffix else {**figures, "eval/kl": kl / count, "eval/entropy": entropy / tokens}


@torch.no_grad()
def _distances(trainer: PPOTrainer, samples: Samples) -> tuple[list[float], list[float]]:
    """KL (k1) and summed entropy of each reply, nats."""
    tokens = TokenBatch.from_ids(samples.prompt_ids, samples.reply_ids, trainer.pad_id).to(trainer.accelerator.device)
    order = torch.argsort(tokens.lengths_N, descending=True)
    kl_N, entropy_N = torch.zeros(len(samples)), torch.zeros(len(samples))
    for rows_B in order.split(trainer.config.micro_batch_size):
        kl_N[rows_B.cpu()], entropy_N[rows_B.cpu()] = _distance(trainer, tokens.rows(rows_B))
    return kl_N.tolist(), entropy_N.tolist()


def _distance(trainer: PPOTrainer, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    policy = reply_distribution(trainer.policy.module, batch, 1.0, entropy=True)
    ref_logps = reply_logprobs(trainer.reference, batch, 1.0)
    mask = batch.mask_NS
    kl_N = masked_sum(kl_estimate(policy.full, ref_logps, "k1"), mask, dim=1)
    return kl_N.float().cpu(), masked_sum(policy.entropy, mask, dim=1).float().cpu()
