"""The moments of base, sft, pmp, rm, rejection and dpo.

Of dpo: nothing is held of the reference, whose log-probabilities are computed before anything is trained, in a pass
like that over held-out pairs.
"""

from __future__ import annotations

from align.plan.cost import supervised_cost
from align.plan.disk import disk
from align.plan.models import Model, frozen_model
from align.plan.parts import MemoryPart, Moment, StagePlan, parts
from align.plan.passes import plain_moment, sampling_moments, training_moments
from align.plan.shapes import Shape
from align.recipe import Recipe, batch_plan
from align.recipe.dpo_section import DPOSection
from align.recipe.rejection_section import RejectionSection
from align.recipe.supervised_sections import RewardSection, SFTSection, SupervisedSection


def plan_supervised(
    recipe: Recipe, stage: str, model: Model, rewards: dict[str, Shape], *, ranks: int, device: str
) -> StagePlan:
    """One stage; `model`: what it trains; `rewards`: the reward models that rejection asks, by role."""
    section: SupervisedSection = getattr(recipe, stage)
    moments = _training(recipe, stage, section, model, ranks, device)
    held_out = (section.eval_data and not isinstance(section, RejectionSection)) or section.holdout
    if held_out or isinstance(section, DPOSection):
        replies = bool(held_out) and isinstance(section, SFTSection | DPOSection)
        moments += _looks(section, model, ranks, device, replies=replies)
    if isinstance(section, RejectionSection):
        moments += _sampling(section, model, recipe, rewards, device)
    cost = supervised_cost(recipe, stage, model, ranks=ranks)
    written = disk(recipe, stage, [model], best=getattr(section, "keep_best", False))
    return StagePlan(stage, tuple(moments), cost, written)


def _training(
    recipe: Recipe, stage: str, section: SupervisedSection, model: Model, ranks: int, device: str
) -> list[Moment]:
    plan = batch_plan(recipe, stage, ranks)
    reward = isinstance(section, RewardSection)
    rows, held = plan.micro_batch_size * section.rows_a_unit, _held(section, model, ranks)
    with_logits = not reward or section.lm_weight > 0
    per_row = section.max_length // (
        2 if reward else 1
    )  # the language model's share of a reward loss: the better reply
    moments = training_moments(
        model,
        held,
        rows,
        section.max_length,
        device=device,
        logit_rows=rows * per_row if with_logits else 0,
        accumulating=plan.accumulation > 1,
    )
    return [*moments, Moment("model: optimizer step", held + model.gradients())]


def _held(section: SupervisedSection, model: Model, ranks: int) -> tuple[MemoryPart, ...]:
    """What is there all the time: the model and, for a language model's term, an output layer that is not trained."""
    if not isinstance(section, RewardSection) or not section.lm_weight:
        return model.resident(ranks)
    shape, width = model.body.shape, model.body.precision.weights
    return model.resident(ranks) + parts("output layer", weights=shape.vocab_size * shape.hidden_size * width)


def _looks(section: SupervisedSection, model: Model, ranks: int, device: str, *, replies: bool) -> list[Moment]:
    held, rows = _held(section, model, ranks), section.eval_batch_size * section.rows_a_unit
    logit_rows = 0 if isinstance(section, RewardSection) else rows * section.max_length
    moments = [
        plain_moment(model, held, rows, section.max_length, device=device, name="held-out loss", logit_rows=logit_rows)
    ]
    if replies and section.eval_num_replies:
        at_once = min(section.eval_batch_size, -(-section.eval_num_replies // ranks))  # of which each has a share
        prompt, reply = max(1, section.max_length - section.max_completion_length), section.max_completion_length
        moments += sampling_moments(model, held, at_once, prompt, reply, truncated=False, name="held-out replies")
    return moments


def _sampling(
    section: RejectionSection, model: Model, recipe: Recipe, rewards: dict[str, Shape], device: str
) -> list[Moment]:
    """The newest model is loaded anew, with the reward models beside it."""
    rollout = section.rollout
    asked = [frozen_model(role, shape, recipe.model, head=False, adapter=True) for role, shape in rewards.items()]
    held = frozen_model("model", model.body.shape, recipe.model, head=True, adapter=True).resident()
    held += tuple(part for one in asked for part in one.resident())
    frozen = frozen_model("model", model.body.shape, recipe.model, head=True)
    truncated = rollout.top_p < 1 or rollout.top_k > 0
    prompt, reply = rollout.max_prompt_length, rollout.max_completion_length
    moments = sampling_moments(frozen, held, rollout.batch_size, prompt, reply, truncated=truncated)
    for one in asked:
        moments.append(plain_moment(one, held, rollout.batch_size, rollout.max_length, device=device, name="scoring"))
    return moments
