"""What a plan is made of: bytes with a name and a role, moments of a stage, the moment of the peak."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
KINDS = ("weights", "adapters", "optimizer", "gradients", "weight copies", "activations", "logits", "kv cache")


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
class StagePlan:
    """The moments of a stage at which memory can be highest, and what was assumed that only the models can tell."""

    stage: str
    moments: tuple[Moment, ...]
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
