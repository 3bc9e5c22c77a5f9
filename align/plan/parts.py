"""What a plan is made of: bytes with a name and a role, moments of a stage, the moment of the peak; phases of work."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
KINDS = ("weights", "adapters", "optimizer", "gradients", "buckets", "weight copies", "activations", "logits")
KINDS += ("kv cache",)
PTX = "ptx"  # the phase of pretraining rows


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """Memory with a reason: one of KINDS, of a model by its role (policy, critic, reference, reward, engine, model)."""

    kind: str
    role: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Moment:
    """What is held at the same time at one point of a stage."""

    name: str
    parts: tuple[MemoryPart, ...]

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a step.

    Attributes:
        tokens: that a model's forward passes compute. head_rows: of them, those that its LM head reads.
        flops: with the backward passes.
    """

    name: str
    tokens: int
    head_rows: int
    flops: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step of a stage costs, over all ranks (`align.plan.cost`).

    Attributes:
        step: `iteration` or `optimizer step`.
        lengths: those that were assumed, in words.
        shared, unshared: tokens of a pass over an iteration's prompts and replies where a prompt is computed once, and
            where it is computed for every reply.
    """

    step: str
    phases: tuple[Phase, ...]
    lengths: str
    shared: int = 0
    unshared: int = 0

    @property
    def flops(self) -> float:
        """In all."""
        return sum(phase.flops for phase in self.phases)

    @property
    def ptx_share(self) -> float:
        """Of all FLOPs, those of pretraining rows."""
        return sum(phase.flops for phase in self.phases if phase.name == PTX) / self.flops


@dataclass(frozen=True, slots=True)
class Disk:
    """What a stage writes, in bytes.

    Attributes:
        models: its model folders, those that go when it is finished (`best/`) included.
        checkpoint: one of its checkpoints.
        number: checkpoints that are there at the same time, one that is being written besides.
        kept: of them, when the stage is finished.
    """

    models: int
    checkpoint: int
    number: int
    kept: int

    @property
    def most(self) -> int:
        """While it runs."""
        return self.models + self.number * self.checkpoint

    @property
    def left(self) -> int:
        """When it is finished."""
        return self.models + self.kept * self.checkpoint


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The moments of a stage at which memory can be highest, what a step of it costs, what it writes to the disk, and
    what was assumed that only the models can tell."""

    stage: str
    moments: tuple[Moment, ...]
    cost: Cost
    disk: Disk
    assumption: str | None = None

    @property
    def peak(self) -> Moment:
        """The highest one."""
        return max(self.moments, key=lambda moment: moment.bytes)


def gib(size: float) -> str:
    """`12.34`, in GiB."""
    return f"{size / GIB:.2f}"


def parts(role: str, **bytes_of: float) -> tuple[MemoryPart, ...]:
    """Parts of one role; `_` in a kind stands for a blank, what is 0 is left out."""
    return tuple(MemoryPart(kind.replace("_", " "), role, round(size)) for kind, size in bytes_of.items() if size > 0)


def flop(number: float) -> str:
    """`12.3 T`: FLOPs with the letter of their power of a thousand."""
    power = 0
    while number >= 1000 and power < 5:
        number, power = number / 1000, power + 1
    return f"{f'{number:.3g}' if number < 1000 else f'{number:,.0f}'} {' kMGTP'[power]}".strip()
