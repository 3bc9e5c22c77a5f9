"""Seconds of a stage's phases from FLOPs, memory bandwidth and interconnect, and what bounds each.

A phase takes as long as the slowest of what it needs: its FLOPs (`align.plan.cost`, at full lengths) on the cards that
share them, the bytes that it reads, the bytes that cards exchange meanwhile. Exchanged are, under FSDP2, a gathering of
all parameters a forward pass of a micro-batch, another one and the reduced float32 gradients a backward pass; under DDP
the gradients once an optimizer step, sent twice (a ring: scattered, then gathered). What no formula has: reading data,
logging, saving, the launch of small kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from align.plan.models import Model, bytes_of_moments
from align.plan.parts import PTX, Cost
from align.plan.ppo_models import StageModels, key_of
from align.recipe import Recipe, batch_plan
from align.scale.decoding import Decoding
from align.scale.efficiency import Efficiency
from align.scale.layout import Layout
from align.scale.memory import compute_width, whole


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """A phase of a step.

    Attributes:
        part: the phase of the log that it belongs to: rollout, score, experience, update, evaluation, training.
        needs: seconds by what it needs, if that were all: compute, memory, link, latency.
        starts: seconds of the start of kernels, besides.
    """

    name: str
    part: str
    needs: dict[str, float]
    starts: float = 0.0

    @property
    def seconds(self) -> float:
        """Of the slowest, and what comes besides."""
        return max(self.needs.values()) + self.starts

    @property
    def bound(self) -> str:
        """The slowest, or the start of kernels where that takes longer."""
        slowest = max(self.needs, key=lambda name: self.needs[name])
        return "starts" if self.starts > self.needs[slowest] else slowest


@dataclass(frozen=True, slots=True)
class Machine:
    """A layout at an efficiency."""

    layout: Layout
    efficiency: Efficiency

    def compute(self, flops: float, kind: str) -> float:
        """Seconds of FLOPs that all ranks share."""
        return flops / (self.layout.ranks * self.layout.cluster.card.flops * getattr(self.efficiency, kind))

    def memory(self, size: float) -> float:
        """Seconds to read or write so many bytes of one card."""
        return size / (self.layout.cluster.card.bandwidth * self.efficiency.bandwidth)

    def ring(self, size: float) -> float:
        """Seconds in which every rank gets its share of `size` bytes from the others, or gives it them."""
        ranks = self.layout.ranks
        return size * (ranks - 1) / ranks / (self.layout.cluster.collective(ranks) * self.efficiency.link)

    def gathering(self, model: Model) -> float:
        """Of all parameters; nothing where they are not sharded."""
        return self.ring(compute_width(model) * whole(model)) if self.layout.sharded else 0.0

    def averaging(self, model: Model) -> float:
        """Of all gradients, in float32; under DDP every rank gets all of them."""
        if self.layout.ranks == 1:
            return 0.0
        return self.ring(4 * model.trained) if self.layout.sharded else 2 * self.ring(model.gradient_bytes)

    def asked(self, name: str, part: str, flops: float, model: Model, micros: int) -> PhaseTime:
        """Passes without gradients, so many micro-batches a rank."""
        found = _needs(name, part, compute=self.compute(flops, "passes"), link=micros * self.gathering(model))
        return replace(found, starts=micros * self.layers(model) * self.efficiency.pass_layer)

    def trained(self, name: str, part: str, flops: float, model: Model, micros: int, steps: int) -> PhaseTime:
        """Forward and backward passes of so many micro-batches a rank, in so many optimizer steps."""
        reduced = micros if self.layout.sharded else steps
        link = micros * 2 * self.gathering(model) + reduced * self.averaging(model)
        found = _needs(name, part, compute=self.compute(flops, "training"), link=link)
        return replace(found, starts=micros * self.layers(model) * self.efficiency.train_layer)

    @staticmethod
    def layers(model: Model) -> int:
        """Of a model."""
        return model.body.shape.num_hidden_layers

    def stepped(self, models: tuple[Model, ...], steps: int, part: str, offloaded: bool = False) -> PhaseTime:
        """Clip and optimizer: weights and moments read and written, gradients read three times and written once."""
        shards = self.layout.ranks if self.layout.sharded else 1
        width = sum((2 + 4) * one.trained * one.trained_width for one in models)
        moments = sum(one.trained * bytes_of_moments(one.optimizer or "", one.trained_width) for one in models)
        needs = {"memory": self.memory(steps * (width + 2 * moments) / shards)}
        if offloaded:
            needs["host"] = steps * 2 * moments / (self.layout.cluster.card.host * self.efficiency.link)
        return _needs("optimizer", part, **needs)


def _needs(name: str, part: str, **needs: float) -> PhaseTime:
    return PhaseTime(name, part, {key: value for key, value in needs.items() if value} or {"compute": 0.0})


def ppo_phases(
    recipe: Recipe, cost: Cost, models: StageModels, machine: Machine, decoding: Decoding
) -> tuple[PhaseTime, ...]:
    """The phases of an iteration, in their order."""
    section, ranks = recipe.ppo, machine.layout.ranks
    plan = batch_plan(recipe, "ppo", ranks)
    by_role = {"policy": models.policy, "critic": models.critic, "reference": models.reference}
    by_role |= {one.role: one for one in models.rewards}
    micros = plan.accumulation * section.num_mini_batches
    steps = plan.steps_per_iteration
    found = list(_sampled(recipe, machine, models.policy, decoding))
    for phase in cost.phases:
        model = by_role.get(_asked_of(phase.name))
        if phase.name == "decode":
            continue
        if phase.name == "evaluation":  # nobody learns from it, and it comes rarely
            found.append(_needs(phase.name, "evaluation", compute=machine.compute(phase.flops, "decode")))
        elif phase.name == PTX:
            rows = -(-plan.ptx_batch_size // ranks // plan.ptx_micro_batch_size)
            found.append(machine.trained(PTX, "update", phase.flops, model, rows * steps, steps))
        elif phase.name.endswith("update"):
            passes = micros * section.num_ppo_epochs
            found.append(machine.trained(phase.name, "update", phase.flops, model, passes, steps))
        elif key_of(phase.name) == "reward":  # whole on every rank
            passes = -(-plan.responses // ranks // section.rollout.batch_size)
            starts = passes * machine.layers(model) * machine.efficiency.pass_layer
            found.append(PhaseTime(phase.name, "score", {"compute": machine.compute(phase.flops, "scoring")}, starts))
        else:
            found.append(machine.asked(phase.name, "experience", phase.flops, model, micros))
    found.append(machine.stepped(models.trained, steps, "update", "optimizer" in section.offload))
    if recipe.ppo.rollout.engine != "hf":
        found.append(_pushed(machine, models.policy, decoding.weights))
    return tuple(found)


def _asked_of(phase: str) -> str:
    """The role whose model a phase of the cost passes through."""
    return {"old log-probabilities": "policy", "old values": "critic", PTX: "policy"}.get(
        phase, phase.removesuffix("'s update")
    )


def _sampled(recipe: Recipe, machine: Machine, policy: Model, decoding: Decoding) -> Iterator[PhaseTime]:
    """Reading prompts and drawing replies, of the engine with most of them; sharded weights that sample themselves are
    gathered first."""
    plan, rollout = batch_plan(recipe, "ppo", machine.layout.ranks), recipe.ppo.rollout
    prompts = -(-plan.prompts // decoding.engines)
    yield _needs("prefill", "rollout", compute=decoding.prefill(prompts, rollout.max_prompt_length))
    replies = [rollout.max_completion_length] * (prompts * rollout.num_generations)
    needs = decoding.needs(replies, rollout.max_prompt_length)
    yield PhaseTime("decode", "rollout", needs)
    if rollout.engine == "hf" and machine.layout.sharded:
        yield _needs("policy gathered", "rollout", link=machine.gathering(policy))


def _pushed(machine: Machine, policy: Model, size: float) -> PhaseTime:
    """The policy's weights to engines: gathered where they are sharded; to engines in the process a copy on the card,
    to servers one after the other from the first rank's machine."""
    layout, link = machine.layout, machine.efficiency.link
    if not layout.servers:
        return _needs("push", "update", link=machine.gathering(policy), memory=machine.memory(2 * size))
    card, several = layout.cluster.card, layout.cluster.nodes > 1
    sent = layout.servers * size / ((card.network if several else card.host) * link)
    return _needs("push", "update", link=machine.gathering(policy), network=sent)


def step_phases(cost: Cost, model: Model, machine: Machine) -> tuple[PhaseTime, ...]:
    """The phases of an optimizer step of a supervised stage. However many micro-batches it has, they are reduced once,
    and what `no_sync` keeps is not gathered again."""
    link = 2 * machine.gathering(model) + machine.averaging(model)
    compute = machine.compute(cost.flops, "training")
    return (_needs("training", "training", compute=compute, link=link), machine.stepped((model,), 1, "training"))
