"""Rewards that are rules about the reply's text: exact match, pattern, length, tags. No model, no training.

Every rule gives 1 or 0. Those that compare with a known answer take it from a column of the prompt (`reference` by
default); a prompt without one cannot be judged, which is an error unless the rule is told what to give then.
Mathematics has its own file, `reward.maths`.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal

from align.runtime.terminal import shortened
from reward.protocol import RewardError, Sample
from reward.scoring import checked
from reward.workers import workers

Normalization = Literal["strip", "spaces", "case", "punctuation", "articles", "unicode"]


class Rule:
    """A reward that judges one reply at a time.

    Args:
        name: for logs and errors.
    """

    def __init__(self, name: str):
        self.name = name

    def of(self, sample: Sample) -> float:
        """The score of one reply."""
        raise NotImplementedError

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample.

        Raises:
            RewardError: a rule that could not be applied, naming the reply.
        """
        return checked([self.of(sample) for sample in samples], len(samples), self.name)


class ReferenceRule(Rule):
    """A rule that compares the reply with a known answer.

    Args:
        column: the prompt's field with the answer, or with a list of answers of which each is right.
        missing: what a reply gets whose prompt has no answer there; None: that is an error.
        name: for logs and errors.
    """

    def __init__(self, name: str, column: str = "reference", missing: float | None = None):
        super().__init__(name)
        self.column, self.missing = column, missing

    def compare(self, completion: str, reference: str) -> bool:
        """Whether the reply is right."""
        raise NotImplementedError

    def answers(self, sample: Sample) -> list[str]:
        """The known answers, of which each is right; none where the prompt has none, whose replies get `missing`.

        Raises:
            RewardError: it has none, and there is no `missing`.
        """
        reference = (sample.columns or {}).get(self.column)
        if reference not in (None, "", []):
            return list(map(str, reference)) if isinstance(reference, list) else [str(reference)]
        if self.missing is None:
            raise RewardError(
                f"reward {self.name!r}: the prompt {shown(sample)} has no {self.column!r} to compare with; "
                "leave such prompts out of the data, or set 'missing' to the score their replies get"
            )
        return []

    def of(self, sample: Sample) -> float:
        """1 where the reply is right, else 0; `missing` where the prompt has no answer."""
        answers = self.answers(sample)
        return float(any(self.compare(sample.completion, answer) for answer in answers)) if answers else self.missing


class ExactMatch(ReferenceRule):
    """1 where reply and reference are equal once both are normalised.

    Args:
        normalize: any of `strip` (blanks at the ends), `spaces` (runs of blanks become one), `case`, `punctuation`
            (ASCII's is removed), `articles` (a, an, the), `unicode` (NFKC: full-width letters and digits).
        column, missing, name: see `ReferenceRule`.
    """

    def __init__(self, normalize: Sequence[Normalization] = ("strip",), *, name: str = "exact_match", **options: Any):
        super().__init__(name, **options)
        self.normalize = tuple(normalize)

    def compare(self, completion: str, reference: str) -> bool:
        """Whether the normalised texts are equal."""
        return normalized(completion, self.normalize) == normalized(reference, self.normalize)


def normalized(text: str, steps: Sequence[Normalization]) -> str:
    """`text` after the named steps, which are always taken in this order: unicode, case, punctuation, articles,
    spaces, strip."""
    work: dict[str, Callable[[str], str]] = {
        "unicode": lambda value: unicodedata.normalize("NFKC", value),
        "case": str.casefold,
        "punctuation": lambda value: value.translate(str.maketrans("", "", string.punctuation)),
        "articles": lambda value: re.sub(r"\b(a|an|the)\b", " ", value, flags=re.IGNORECASE),
        "spaces": lambda value: re.sub(r"\s+", " ", value),
        "strip": str.strip,
    }
    for step, change in work.items():
        text = change(text) if step in steps else text
    return text


class RegexMatch(Rule):
    """1 where the pattern matches; 0 where it does not, or takes too long to say so (`reward.workers`).

    Args:
        pattern: a regular expression; `.` does not match a newline unless it says `(?s)`.
        match: `search` anywhere, or the `full` reply.
        ignore_case: letters of both cases are alike.
        seconds: of CPU that one reply may take, since some patterns take for ever on some texts.
        name: for logs and errors.

    Raises:
        ValueError: a pattern that is no regular expression.
    """

    def __init__(
        self,
        pattern: str,
        *,
        match: Literal["search", "full"] = "search",
        ignore_case: bool = False,
        seconds: float = 1.0,
        name: str = "regex",
    ):
        import regex

        super().__init__(name)
        self.seconds = seconds
        self._asked = {"pattern": pattern, "match": match, "ignore_case": ignore_case}
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError) as error:
            problem = f"{shortened(pattern)!r} is no regular expression ({error})"
            raise ValueError(f"reward {name!r}: {problem}") from error

    def of(self, sample: Sample) -> float:
        """1 or 0."""
        return self.score([sample])[0]

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """1 or 0 a sample."""
        requests = [{**self._asked, "text": sample.completion} for sample in samples]
        return [float(said is True) for said in workers("regex").judge(requests, self.seconds, self.name)]


class LengthWindow(Rule):
    """1 where the reply's length lies in a window, both ends included.

    Args:
        minimum, maximum: in `unit`; None for no bound.
        count: the lengths of texts, for a unit other than characters (`token_counter`).
        name: for logs and errors.
    """

    def __init__(
        self,
        minimum: int = 0,
        maximum: int | None = None,
        *,
        count: Callable[[Sequence[str]], list[int]] | None = None,
        name: str = "length",
    ):
        super().__init__(name)
        self.minimum, self.maximum = minimum, maximum
        self.count = count or (lambda texts: [len(text) for text in texts])

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """1 or 0 a sample."""
        lengths = self.count([sample.completion for sample in samples])
        highest = float("inf") if self.maximum is None else self.maximum
        return [float(self.minimum <= length <= highest) for length in lengths]


def token_counter(tokenizer: Any) -> Callable[[Sequence[str]], list[int]]:
    """Counts a text's tokens, control tokens left out, with a ChatML tokenizer."""
    from data_formats.chatml import encode_texts

    return lambda texts: [len(ids) for ids in encode_texts(tokenizer, texts, continues=True)]


class TagFormat(Rule):
    """1 where the reply is made of the given tags, in order, each once: `<think>…</think>` and then the answer.

    Between the tags stand only blanks. No tag of the list may occur inside another or in the text after them.

    Args:
        tags: their names, without brackets.
        then: what follows the last closing tag: `text` (there must be some), or `nothing`.
        name: for logs and errors.
    """

    def __init__(
        self, tags: Sequence[str] = ("think",), *, then: Literal["text", "nothing"] = "text", name: str = "format"
    ):
        super().__init__(name)
        self.tags, self.then = tuple(tags), then

    def of(self, sample: Sample) -> float:
        """1 or 0."""
        return float(self._holds(sample.completion))

    def _holds(self, text: str) -> bool:
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        if any(text.count(mark) != 1 for mark in marks):
            return False
        for index, mark in enumerate(marks):
            before, _, text = text.partition(mark)
            if not _ or (index % 2 == 0 and before.strip()):
                return False
        return bool(text.strip()) == (self.then == "text")


def shown(sample: Sample) -> str:
    """The prompt's last turn, short, for error messages."""
    text = sample.prompt[-1].content if sample.prompt else ""
    return repr(shortened(text))
