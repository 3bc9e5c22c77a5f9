"""A Python function of the user's, called with prompts, replies and those columns of the prompts that it takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reward.protocol import RewardError, Sample


def name_of(fn: Callable[..., Any]) -> str:
    """What a function is called in logs and errors."""
    return getattr(fn, "__name__", type(fn).__name__)


class ColumnsFunction:
    """`fn(prompts, *replies, **columns)`, with its failures as errors.

    `prompts` are lists of `{"role", "content"}`; every column of the prompts' records comes as a list (None where a
    record lacks it). A function without `**kwargs` gets only the columns that it names.

    Args:
        called: the subject of its errors ("reward 'length'").
        taken: what its arguments before the columns are called; no column goes under one of these names.

    Raises:
        RewardError: what the function takes cannot be seen.
    """

    def __init__(self, fn: Callable[..., Any], called: str, taken: Sequence[str]):
        self.fn, self.called, self.taken = fn, called, frozenset(taken)
        try:
            parameters = inspect.signature(fn).parameters.values()
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"{called}: what it takes cannot be seen ({error}); name a function written in Python"
            ) from error
        self._named = {parameter.name for parameter in parameters}
        self._open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)

    def __call__(self, samples: Sequence[Sample], *replies: list[str]) -> Any:
        """What the function gives; a generator as a list.

        Args:
            samples: whose prompts and columns it gets.

        Raises:
            RewardError: it failed.
        """
        prompts = [[{"role": turn.role, "content": turn.content} for turn in sample.prompt] for sample in samples]
        names = sorted({name for sample in samples for name in sample.columns or ()} - self.taken)
        columns = {
            name: [(sample.columns or {}).get(name) for sample in samples]
            for name in names
            if self._open or name in self._named
        }
        try:
            given = self.fn(prompts, *replies, **columns)
            return list(given) if isinstance(given, Iterator) else given  # a generator fails only here
        except (Exception, SystemExit) as error:  # sys.exit() would end the training without a word
            raise RewardError(f"{self.called} failed: {type(error).__name__}: {error}") from error
