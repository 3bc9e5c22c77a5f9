"""The moments of ppo: four models at once (three without a critic), of which policy and critic are in training and the
policy samples (or an engine beside).

What `ppo.offload` names is left out of the moments in which it is idle.
"""

from __future__ import annotations

from dataclasses import replace

from align.plan.activations import INNER_BLOCK
from align.plan.cost import ppo_cost
from align.plan.disk import disk
from align.plan.engine import ENGINES, engine_parts, held_parts, sleeps
from align.plan.models import Model
from align.plan.parts import MemoryPart, Moment, StagePlan, parts
from align.plan.passes import plain_moment, sampling_moments, training_moments
from align.plan.ppo_models import StageModels, roles
from align.plan.shapes import Shape
from align.recipe import Recipe, batch_plan
from align.recipe.batch import BLOCK_LOGITS, FULL_KL_REPLIES


def plan_ppo(
    recipe: Recipe, policy: Shape, critic: Shape | None, rewards: dict[str, Shape], *, ranks: int, device: str
) -> StagePlan:
    """The stage; `critic`: None without one; `rewards`: the reward models by role, `gold_reward` among them."""
    section, plan = recipe.ppo, batch_plan(recipe, "ppo", ranks)
    models, rollout, rows = roles(recipe, policy, critic, rewards), section.rollout, plan.micro_batch_size
    models = models if device == "cpu" else replace(models, offload=section.offload)  # a CPU has no other memory
    held = models.resident(ranks)
    if section.ema_decay is not None:
        average = models.policy
        frozen = recipe.model.adapter != "none"  # its base is not averaged
        whole = 0 if frozen else average.body.precision.bytes_of(average.body.count, head=True)
        held += parts("average", weights=whole, adapters=4 * average.adapter_size)
    engine = engine_parts(rollout, models.policy, recipe.model.dtype, plan.responses // ranks, device)
    held += held_parts(rollout, models.policy, recipe.model.dtype, rollout.overlap, device)
    idle = models.without_idle(held)
    moments = [Moment("engine: sampling", idle + engine)]
    if rollout.engine not in ENGINES:
        moments = _sampling(recipe, models, idle, plan.responses // ranks)
    elif not sleeps(rollout, device):
        held += engine
    tokens, replies = rollout.max_length, rows * rollout.max_completion_length
    at_once = min(rollout.batch_size, plan.responses // ranks)
    for one in models.rewards:
        here = models.without_idle(held, *models.judging(one))
        moments.append(plain_moment(one, here, at_once, tokens, device=device, name="scoring"))
    here = models.without_idle(held, "reference")
    for one in (models.policy, models.reference, models.critic):
        if one is not None:
            asked = replies if one.head else 0
            moments.append(plain_moment(one, here, rows, tokens, device=device, name="passes", logit_rows=asked))
    moments.append(_whole_kl(models, here, rollout.max_completion_length, device))
    many, whole = plan.accumulation > 1, held
    held = models.without_idle(held)
    moments += training_moments(models.policy, held, rows, tokens, device=device, logit_rows=replies, accumulating=many)
    if models.critic is not None:
        beside = held + models.policy.gradients()
        moments += training_moments(models.critic, beside, rows, tokens, device=device, accumulating=many)
        held += models.critic.gradients()
    if section.uses_ptx:
        moments += _ptx(recipe, models.policy, held, plan.ptx_micro_batch_size, device)
    average = section.ema_decay is not None
    written = disk(recipe, "ppo", models.trained, best=section.evaluation.save_best, average=average)
    return StagePlan("ppo", (*moments, *_steps(models, whole)), ppo_cost(recipe, models, ranks=ranks), written)


def _steps(models: StageModels, held: tuple[MemoryPart, ...]) -> list[Moment]:
    """Where moments wait, those of one model are there at a time."""
    gradients = tuple(part for one in models.trained for part in one.gradients())
    if "optimizer" not in models.offload:
        return [Moment("optimizer step", models.without_idle(held) + gradients)]
    return [
        Moment(f"{one.role}: optimizer step", models.without_idle(held, f"{one.role}'s moments") + gradients)
        for one in models.trained
    ]


def _sampling(recipe: Recipe, models: StageModels, held: tuple[MemoryPart, ...], responses: int) -> list[Moment]:
    rollout = recipe.ppo.rollout
    truncated = rollout.top_p < 1 or rollout.top_k > 0
    return sampling_moments(
        models.policy,
        held,
        min(rollout.batch_size, responses),
        rollout.max_prompt_length,
        rollout.max_completion_length,
        truncated=truncated,
    )


def _whole_kl(models: StageModels, held: tuple[MemoryPart, ...], tokens: int, device: str) -> Moment:
    """The exact KL of as many replies as a block of logits has room for: those of policy and reference, and three
    float32 pieces of theirs."""
    precision = models.policy.body.precision
    width = 4 if precision.autocast else precision.weights
    one = tokens * models.policy.body.shape.vocab_size
    size = one * max(1, min(FULL_KL_REPLIES, BLOCK_LOGITS // one))
    made = size * (2 * width + (2 if precision.autocast else 0)) + 3 * 4 * min(size, INNER_BLOCK[device])
    return Moment("policy and reference: exact KL", held + parts("policy", logits=made))


def _ptx(recipe: Recipe, policy: Model, held: tuple[MemoryPart, ...], rows: int, device: str) -> list[Moment]:
    """Pretraining rows come on top of the replies' gradients, whose norm is taken from a copy."""
    held += policy.gradients()
    tokens = recipe.ppo.ptx_max_length
    found = training_moments(policy, held, rows, tokens, device=device, logit_rows=rows * tokens, accumulating=True)
    return [replace(moment, name=moment.name.replace("policy:", "policy, ptx:")) for moment in found]
