"""What one card holds under a layout: the plan's parts, and what FSDP2 makes of them.

Sharded are policy, critic, reference, average and the model of a supervised stage: weights, moments and gradients by
the number of ranks. Not sharded are rewards, an engine in the process, and whatever a pass makes. A pass holds beside
its shards the layers that are gathered just now, in the width it computes in: one at work, the next one, and what
belongs to no layer (embedding, head), and in training the gradients of one of them before they are reduced. Sampling
with the policy itself gathers all of it, and so does an evaluation, which asks policy and reference. What autocast
would copy, a gathered layer is already.

Gradients of several micro-batches: PPO reduces each micro-batch's; transformers' Trainer keeps them whole until the
last (`no_sync`), which is 4 bytes a parameter of the whole model on every card.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from align.plan.models import Model
from align.plan.parts import MemoryPart, Moment, StagePlan, parts

SPREAD = {"weights", "adapters", "optimizer", "gradients"}
GATHERED, EVALUATION = "gathered", "policy and reference: evaluation"


def on_a_card(
    plan: StagePlan, models: dict[str, Model], ranks: int, *, keeps: bool = False, evaluates: bool = False
) -> StagePlan:
    """The plan of a stage on one of so many cards under FSDP2.

    Args:
        plan: made for as many ranks.
        models: those that are sharded, by role; `average` is the policy's.
        keeps: gradients of several micro-batches are whole until the last.
        evaluates: policy and reference are asked about held-out prompts, of which ranks have unequal shares: both are
            whole then (`align.trainers.ppo.evaluation`).
    """
    moments = list(plan.moments)
    if evaluates:
        moments += [replace(one, name=EVALUATION) for one in plan.moments if one.name.endswith("exact KL")]
    return replace(plan, moments=tuple(_sharded(moment, models, ranks, keeps) for moment in moments))


def _sharded(moment: Moment, models: dict[str, Model], ranks: int, keeps: bool) -> Moment:
    spread = {*models, *(("average",) if "policy" in models else ())}
    kept = []
    for part in moment.parts:
        if part.role not in spread or (part.kind == "gradients" and keeps and "backward" in moment.name):
            kept.append(part)
        elif part.kind in SPREAD:
            kept.append(MemoryPart(part.kind, part.role, -(-part.bytes // ranks)))
        elif part.kind not in ("buckets", "weight copies"):
            kept.append(part)
    return Moment(moment.name, (*kept, *_gathered(moment.name, models)))


def _gathered(moment: str, models: dict[str, Model]) -> Iterator[MemoryPart]:
    """The parameters that are whole for the while."""
    said, _, what = moment.partition(": ")
    for role, model in models.items():
        if role not in said or "optimizer" in what:
            continue
        if "sampling" in what or "replies" in what or moment == EVALUATION:
            size = compute_width(model) * whole(model)
        else:
            size = compute_width(model) * (2 * layer(model) + ends(model))
            size += 4 * max(layer(model), ends(model)) if "backward" in what else 0
        yield from parts(role, **{GATHERED: size})


def compute_width(model: Model) -> int:
    """Bytes of a parameter that is gathered."""
    precision = model.body.precision
    return 2 if precision.autocast else precision.weights


def whole(model: Model) -> int:
    """Parameters, with those of its adapter."""
    return (model.body.count.whole if model.head else model.body.count.body) + model.adapter_size


def ends(model: Model) -> int:
    """Parameters of no layer: embedding and head."""
    return model.body.count.embedding + (model.body.count.head if model.head else 0)


def layer(model: Model) -> int:
    """Parameters of one layer."""
    return (whole(model) - ends(model)) // model.body.shape.num_hidden_layers
