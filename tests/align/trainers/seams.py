"""What a class promises to those who subclass it, as text, and a subclass that counts the calls; for `test_seams`."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

OURS = ("align.", "reward.", "rollouts.")


def signature(function: Callable[..., Any]) -> str:
    """Names, kinds, defaults and annotations of the parameters, and the return annotation, as they were written."""
    return str(inspect.signature(function)).replace("'", "")


def public_methods(kind: type) -> dict[str, str]:
    """The signature of every public method that `kind` or a base of ours defines; a property is its return type."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith(OURS):
            continue
        for name, member in vars(base).items():
            if name.startswith("_"):
                continue
            if isinstance(member, property):
                found[name] = f"property -> {signature(member.fget).split(' -> ')[1]}"
            elif isinstance(member, classmethod | staticmethod):
                found[name] = signature(member.__func__)
            elif inspect.isfunction(member):
                found[name] = signature(member)
    return found


WHAT_TO_DO = (
    "programs that subclass it or call it break. Not meant: put it back (a name that begins with an underscore binds "
    "nobody). Meant: say in CHANGELOG.md what changed and what to write instead, then change the list in "
    "tests/align/trainers/test_seams.py"
)


def changes(owner: str, promised: dict[str, str], found: dict[str, str]) -> list[str]:
    """One sentence for every promise that was changed or dropped, and for every new name that nobody promised."""
    problems = []
    for name in [*promised, *(name for name in found if name not in promised)]:
        was, now = promised.get(name), found.get(name)
        if now is None:
            problems.append(f"{owner}.{name} is gone; {WHAT_TO_DO}")
        elif was is None:
            problems.append(
                f"{owner}.{name} is new and public, {now}; add it to the list, or begin it with an underscore"
            )
        elif was != now:
            problems.append(f"{owner}.{name} was {was} and is {now}; {WHAT_TO_DO}")
    return problems


def counted(kind: type, names: Sequence[str]) -> type:
    """A subclass that overrides each of these methods, counts its calls in `calls`, and calls what it replaces."""

    def counting(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return getattr(kind, name)(self, *args, **kwargs)

        return method

    calls = Counter(dict.fromkeys(names, 0))
    return type(f"Counted{kind.__name__}", (kind,), {"calls": calls, **{name: counting(name) for name in names}})
