"""Derived batch sizes. A recipe names the sizes that matter for learning; how they are cut over ranks and
micro-batches is computed here, once, and never written back into the recipe. `micro_batch_size` (of ppo also
`micro_batch_tokens`) is an upper bound: where more ranks leave each with less, a rank holds its whole share at once, so
one recipe serves one rank and many.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from align.recipe.errors import RecipeError
from align.recipe.ppo_section import PPOSection
from align.recipe.schema import Recipe
from align.recipe.supervised_sections import SupervisedSection

BLOCK_LOGITS = 1 << 26  # that the LM head makes at once (`align.trainers.head`): 256 MiB in float32
FULL_KL_REPLIES = 4  # of an iteration's, whose KL PPO computes over the whole vocabulary, for the log


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How one optimizer step of a stage is cut.

    Attributes:
        stage: the stage's name.
        world_size: number of ranks.
        batch_size: rows (pairs for pmp, rm and dpo, responses for ppo) of one optimizer step over all ranks.
        rank_batch_size: the share of one rank, `batch_size / world_size`.
        micro_batch_size: rows a rank holds at once, at most its share; of ppo, where all are as long as they may be.
        accumulation: micro-batches a rank passes through per optimizer step; of ppo at most, and the last one may be
            smaller.
        prompts: ppo: prompts of one iteration over all ranks.
        responses: ppo: responses of one iteration over all ranks, `prompts * num_generations`.
        steps_per_iteration: ppo: optimizer steps of one iteration, `num_ppo_epochs * num_mini_batches`.
        ptx_batch_size: ppo: pretraining rows of one optimizer step over all ranks, `ptx_ratio * batch_size`.
        ptx_micro_batch_size: ppo: pretraining rows a rank holds at once.
    """

    stage: str
    world_size: int
    batch_size: int
    rank_batch_size: int
    micro_batch_size: int
    accumulation: int
    prompts: int = 0
    responses: int = 0
    steps_per_iteration: int = 0
    ptx_batch_size: int = 0
    ptx_micro_batch_size: int = 0


def launched_world_size() -> int:
    """Number of ranks this process was launched with (`WORLD_SIZE`), 1 when it was not launched."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdigit() and int(text) > 0 else 1


def _nearest_multiple(value: int, unit: int) -> int:
    return max(unit, round(value / unit) * unit)


def _largest_divisor(value: int, at_most: int) -> int:
    return next(size for size in range(min(value, at_most), 0, -1) if value % size == 0)


def _supervised_problem(section: SupervisedSection, stage: str, world_size: int) -> str | None:
    rows, micro = section.batch_size, section.micro_batch_size
    if micro > rows:
        return (
            f"{stage}.micro_batch_size: {micro} is more than batch_size ({rows}); try {stage}.micro_batch_size={rows}"
        )
    if world_size > 1 and rows % world_size == 0:
        micro = min(micro, rows // world_size)
    if rows % (world_size * micro) == 0:
        return None
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    wrong = (
        f"{stage}.batch_size: {rows} rows cannot be cut into {ranks} x micro_batch_size {micro} x a whole accumulation"
    )
    if rows % world_size:
        near = _nearest_multiple(rows, world_size * micro)
        return f"{wrong} ({rows} / {world_size} is not whole); try {stage}.batch_size={near}"
    fitting = _largest_divisor(rows // world_size, micro)
    return (
        f"{wrong} ({rows} / {world_size} = {rows // world_size} rows a rank); "
        f"try {stage}.micro_batch_size={fitting} or {stage}.batch_size={_nearest_multiple(rows, world_size * micro)}"
    )


def _ppo_problem(section: PPOSection, world_size: int) -> str | None:
    prompts, n, minis = section.rollout_batch_size, section.rollout.num_generations, section.num_mini_batches
    responses = prompts * n
    made = f"{prompts} prompts x {n} generations = {responses} responses"
    if responses % minis:
        return (
            f"ppo.num_mini_batches: {made} cannot be cut into {minis} equal minibatches; "
            f"try ppo.num_mini_batches={_largest_divisor(responses, minis)}"
        )
    if prompts % world_size:
        return (
            f"ppo.rollout_batch_size: {prompts} prompts cannot be shared equally by {world_size} ranks; "
            f"try ppo.rollout_batch_size={_nearest_multiple(prompts, world_size * minis)}"
        )
    if (responses // minis) % world_size:
        fitting = _largest_divisor(responses // world_size, minis)
        return (
            f"ppo.num_mini_batches: {made} in {minis} minibatches give {responses // minis} a minibatch, which "
            f"{world_size} ranks cannot share equally; try ppo.num_mini_batches={fitting}"
        )
    if section.micro_batch_size is not None and section.micro_batch_size > responses // minis:
        return (
            f"ppo.micro_batch_size: {section.micro_batch_size} is more than the {responses // minis} responses of a "
            f"minibatch ({made} / {minis} minibatches); try ppo.micro_batch_size={responses // minis}"
        )
    return None


def batch_problem(recipe: Recipe, stage: str, world_size: int) -> str | None:
    """What is wrong with the batch split of `stage`, or None."""
    section = getattr(recipe, stage)
    if isinstance(section, PPOSection):
        return _ppo_problem(section, world_size)
    return _supervised_problem(section, stage, world_size)


def batch_plan(recipe: Recipe, stage: str, world_size: int | None = None) -> BatchPlan:
    """The plan of `stage` on `world_size` ranks (default: as launched). Raises RecipeError for an impossible split."""
    world_size = launched_world_size() if world_size is None else world_size
    problem = batch_problem(recipe, stage, world_size)
    if problem:
        raise RecipeError([problem], recipe.name)
    section = getattr(recipe, stage)
    if isinstance(section, PPOSection):
        return _ppo_plan(section, world_size)
    share = section.batch_size // world_size
    micro = min(section.micro_batch_size, share)
    return BatchPlan(stage, world_size, section.batch_size, share, micro, share // micro)


def _ppo_plan(section: PPOSection, world_size: int) -> BatchPlan:
    responses = section.rollout_batch_size * section.rollout.num_generations
    minibatch = responses // section.num_mini_batches
    share = minibatch // world_size
    micro = min(section.rows_at_once, share)
    ptx = section.ptx_ratio * minibatch if section.uses_ptx else 0
    ptx_micro = min(section.ptx_rows_at_once, ptx // world_size)
    return BatchPlan(
        stage="ppo",
        world_size=world_size,
        batch_size=minibatch,
        rank_batch_size=share,
        micro_batch_size=micro,
        accumulation=-(-share // micro),
        prompts=section.rollout_batch_size,
        responses=responses,
        steps_per_iteration=section.num_ppo_epochs * section.num_mini_batches,
        ptx_batch_size=ptx,
        ptx_micro_batch_size=ptx_micro,
    )
