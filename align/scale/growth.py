"""A layout's phases as the pieces that the schedule is simulated from: replies of unlike length, more ranks."""

from __future__ import annotations

from collections.abc import Sequence

from align.plan.parts import PTX
from align.recipe import Recipe, batch_plan
from align.scale.choose import StageScale
from align.scale.layout import Layout
from align.scale.schedule import Costs, Timeline, drawn_lengths, run

ITERATIONS = 8  # that are simulated
FIXED = ("optimizer", PTX)  # of an iteration, whatever the replies' lengths


def costs_of(recipe: Recipe, stage: StageScale, layout: Layout) -> Costs:
    """What pieces of ppo's iteration take on a card, by the phases at full length: so much a token. Collectives are in
    the phases that they bound."""
    section, decoding = recipe.ppo, stage.decoding
    if decoding is None:
        raise ValueError("only ppo's iterations are simulated")
    plan, prompt = batch_plan(recipe, "ppo", layout.ranks), section.rollout.max_prompt_length
    whole = plan.prompts * (prompt + section.rollout.num_generations * section.rollout.max_completion_length)

    def a_token(part: str) -> float:
        counted = (one.seconds for one in stage.phases if one.part == part and one.name not in (*FIXED, "push"))
        return sum(counted) * layout.ranks / whole

    score, experience, update = (a_token(part) for part in ("score", "experience", "update"))
    fixed = sum(one.seconds for one in stage.phases if one.name in FIXED)
    times = section.rollout.num_generations

    def rollout(replies: Sequence[int]) -> float:
        return decoding.prefill(-(-len(replies) // times), prompt) + decoding.seconds(replies, prompt)

    return Costs(
        rollout=rollout,
        score=lambda replies, tokens: score * tokens,
        experience=lambda replies, tokens: experience * tokens,
        update=lambda replies, tokens: update * tokens + fixed,
        averaging=lambda ranks: 0.0,
        push=sum(one.seconds for one in stage.phases if one.name == "push"),
        steps=plan.steps_per_iteration,
        prompt=prompt,
        times=times,
    )


def simulated(
    recipe: Recipe, stage: StageScale, layout: Layout, *, mean: float | None = None, overlap: bool | None = None
) -> Timeline:
    """Iterations of a layout.

    Args:
        mean: of the replies' lengths, an exponential distribution cut at the longest; None: all are the longest.
        overlap: whether servers sample ahead; None: as the recipe says.
    """
    section, replies = recipe.ppo, batch_plan(recipe, "ppo", layout.ranks).responses
    longest = section.rollout.max_completion_length
    batches = [drawn_lengths(replies, longest, mean, seed) for seed in range(ITERATIONS)]
    ahead = layout.samples_ahead(recipe) if overlap is None else overlap
    return run(costs_of(recipe, stage, layout), batches, layout.ranks, servers=layout.servers, overlap=ahead)
