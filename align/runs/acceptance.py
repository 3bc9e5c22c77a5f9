"""`--accept KEY`: a change that a run goes on with although it was begun without it.

What is accepted holds while the command runs; what that came to is noted for good in the stage's `accepted.json`, one
entry a change (`key`, `was`, `is`, `step`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from align.runs import checkpoint
from align.runtime.files import write_json
from align.runtime.json_files import read_object
from align.runtime.ranks import is_main

FILE = "accepted.json"
_KEYS: ContextVar[tuple[str, ...]] = ContextVar("accepted", default=())


@contextmanager
def accepting(keys: Sequence[str]) -> Iterator[None]:
    """Accept changes of these keys, and of all below them, inside the block."""
    token = _KEYS.set(tuple(keys))
    try:
        yield
    finally:
        _KEYS.reset(token)


def is_accepted(key: str) -> bool:
    """Whether a change of `key` (`ppo.reward.0.pattern`) is accepted, by itself or as part of a larger key."""
    return any(key == one or key.startswith(f"{one}.") for one in _KEYS.get())


def accepted(folder: Path) -> list[dict[str, Any]]:
    """What the stage in `folder` went on with. Raises RunFileError."""
    found = read_object(folder / FILE, "remove it, and name what is to be accepted again") or {}
    changes = found.get("changes")
    return [one for one in changes if isinstance(one, dict)] if isinstance(changes, list) else []


def note(folder: Path, changes: Iterable[dict[str, Any]]) -> None:
    """Add `changes` (`key`, `was`, `is`) to the stage's list, with the step it goes on from; the first rank writes."""
    if not is_main():
        return
    kept = accepted(folder)
    newest = checkpoint.latest(folder / "checkpoints")
    step = checkpoint.step_of(newest) if newest else 0
    new = [{**one, "step": step} for one in changes]
    known = [{key: one.get(key) for key in ("key", "was", "is")} for one in kept]
    new = [one for one in new if {key: one[key] for key in ("key", "was", "is")} not in known]
    if new:
        write_json(folder / FILE, {"changes": kept + new})
