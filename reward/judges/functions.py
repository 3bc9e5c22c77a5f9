"""A Python function as judge, which sees both replies at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from align.runtime.terminal import shortened
from reward.functions import ColumnsFunction, name_of
from reward.judges.protocol import ALIKE, Judgment, ReplyPair
from reward.protocol import RewardError

_WORDS = ("first", "second", "tie")


class FunctionJudge:
    """`fn(prompts, first, second, **columns)` -> one verdict a pair.

    A verdict is "first", "second", "tie", None for none, or a number: above 0 the first reply is better, below 0 the
    second, 0 is a tie (a difference of two scores, or what `sorted` takes as `cmp`), and NaN is none. `prompts` are
    lists of `{"role", "content"}`, `first` and `second` strings, and columns come as a `FunctionReward` gets them.
    Pairs of the same text are ties that the function is not asked about.

    Args:
        function: the function itself; who is given `file.py:name` loads it.
        name: default: the function's.
        described: what follows "judged by"; default: "the function NAME".
    """

    def __init__(self, function: Callable[..., Any], *, name: str = "", described: str = ""):
        if not callable(function):
            raise TypeError(f"FunctionJudge: must be a function (prompts, first, second, **columns), not {function!r}")
        self.name = name or name_of(function)
        self.described = described or f"the function {self.name}"
        self._function = ColumnsFunction(function, f"judge {self.name!r}", ("prompts", "first", "second"))

    def compare(self, pairs: Sequence[ReplyPair]) -> list[list[Judgment]]:
        """One judgment a pair.

        Raises:
            RewardError: the function failed, or gave something else than one verdict a pair.
        """
        asked = [pair for pair in pairs if not pair.alike]
        given = iter(self._asked(asked) if asked else ())
        return [[ALIKE if pair.alike else next(given)] for pair in pairs]

    def _asked(self, pairs: Sequence[ReplyPair]) -> list[Judgment]:
        sides = [
            [side.completion for side in sides] for sides in zip(*((p.first, p.second) for p in pairs), strict=True)
        ]
        verdicts = self._function([pair.first for pair in pairs], *sides)
        try:
            if isinstance(verdicts, str | bytes | Mapping | Set):
                raise TypeError
            verdicts = list(verdicts)
        except TypeError:
            found = shortened(repr(verdicts))
            raise RewardError(f"judge {self.name!r} must give a list of one verdict a pair, it gave {found}") from None
        if len(verdicts) != len(pairs):
            raise RewardError(f"judge {self.name!r} gave {len(verdicts)} verdicts for {len(pairs)} pairs")
        return [self._judgment(verdict, at) for at, verdict in enumerate(verdicts)]

    def _judgment(self, verdict: Any, at: int) -> Judgment:
        if verdict is None or (isinstance(verdict, str) and verdict in _WORDS):
            return Judgment(verdict)
        try:
            is_flag = isinstance(verdict, bool) or str(getattr(verdict, "dtype", "")).endswith("bool")
            if is_flag or isinstance(verdict, str | bytes):  # True would be "first", and False a tie
                raise TypeError
            number = float(verdict)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise RewardError(
                f'judge {self.name!r} gave {shortened(repr(verdict))} for pair {at}: it must be "first", "second", '
                '"tie", None, or a number, above 0 where the first reply is better'
            ) from None
        if math.isnan(number):
            return Judgment(None)
        return Judgment("tie" if number == 0 else "first" if number > 0 else "second")
