"""Rewards that judge a number or a formula: GSM8K's final answers, and equality as mathematics by `math-verify`.

`math-verify` (Hugging Face, Apache-2.0, the extra `maths`) reads the answer out of free text (LaTeX, a boxed answer,
plain numbers) and compares by sympy, so that 1/2, 0.5 and \\frac{1}{2} are equal. GSM8K needs no library: its answers
are plain numbers behind "####" (Cobbe et al. 2021).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from align.runtime.packages import require_package
from align.runtime.terminal import shortened
from reward.protocol import RewardError, Sample
from reward.rules import ReferenceRule
from reward.workers import workers

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
MARK = "####"
SECONDS = 1.0  # of CPU that math-verify may take for a reply


class FinalAnswer(ReferenceRule):
    """1 where the reply's final number is the reference's (GSM8K).

    The reference is a number, or a worked solution that ends with `#### number`. Thousands separators, a dollar sign
    and trailing zeros do not matter.

    Args:
        extract: `strict`: the number behind the reply's last "####", and none is wrong; `flexible`: without that mark,
            the last number of the reply.
        column, missing, name: see `ReferenceRule`.
    """

    def __init__(self, extract: Literal["strict", "flexible"] = "strict", *, name: str = "gsm8k", **options: Any):
        super().__init__(name, **options)
        self.extract = extract

    def compare(self, completion: str, reference: str) -> bool:
        """Whether the numbers are equal.

        Raises:
            RewardError: the reference holds no number where it should.
        """
        right = marked_number(reference) if MARK in reference else number(reference)
        if right is None:
            raise RewardError(
                f"reward {self.name!r}: the {self.column} {shortened(reference)!r} is neither a number nor a text with "
                "'#### number'"
            )
        found = marked_number(completion)
        if found is None and MARK not in completion and self.extract == "flexible":
            found = last_number(completion)
        return found == right


def marked_number(text: str) -> Decimal | None:
    """The number behind the last "####", None where there is no such mark or no number right behind it."""
    mark, tail = text.rpartition(MARK)[1:]
    match = NUMBER.match(tail.strip()) if mark else None
    return number(match.group()) if match else None


def last_number(text: str) -> Decimal | None:
    """The last number of a text, None where there is none."""
    found = NUMBER.findall(text)
    return number(found[-1]) if found else None


def number(text: str) -> Decimal | None:
    """A text that is one number, with or without $ , and a full stop at its end; None for anything else."""
    try:
        value = Decimal(text.strip().rstrip(".").replace("$", "").replace(",", ""))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


class MathEquality(ReferenceRule):
    """1 where the reply's answer equals the reference as mathematics, by `math-verify` in a process of its own.

    A reply that holds no answer the library can read is wrong, and so is one that keeps it busy for more than `SECONDS`
    (`reward.workers`). A reference may be LaTeX with or without dollar signs, a number, or a worked solution with
    "#### answer".

    Args:
        column, missing, name: see `ReferenceRule`.

    Raises:
        MissingPackageError: `math-verify` is not installed.
    """

    def __init__(self, *, name: str = "math", **options: Any):
        super().__init__(name, **options)
        require_package(f"reward {name!r}", "math_verify")

    def compare(self, completion: str, reference: str) -> bool:
        """Whether reply and reference are equal; see `score`."""
        return self._judged([completion], [reference])[0]

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """1 or 0 a sample, `missing` where the prompt has no answer.

        Raises:
            RewardError: a reference cannot be read as mathematics.
        """
        answers_of = [self.answers(sample) for sample in samples]
        judged = zip(samples, answers_of, strict=True)
        asked = [(sample.completion, answer) for sample, answers in judged for answer in answers]
        right = iter(self._judged([completion for completion, _ in asked], [answer for _, answer in asked]))
        return [float(max(next(right) for _ in answers)) if answers else self.missing for answers in answers_of]

    def _judged(self, completions: Sequence[str], references: Sequence[str]) -> list[bool]:
        requests = [
            {"text": completion, "reference": reference.rpartition(MARK)[2].strip()}
            for completion, reference in zip(completions, references, strict=True)
        ]
        said = workers("math").judge(requests, SECONDS, self.name)
        if "unreadable" in said:
            reference = references[said.index("unreadable")]
            raise RewardError(
                f"reward {self.name!r}: the {self.column} {shortened(reference)!r} cannot be read as a number or LaTeX"
            )
        return [verdict is True for verdict in said]
