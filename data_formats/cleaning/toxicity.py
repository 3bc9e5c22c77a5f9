"""Toxic records, by whoever tells: a list of words, a classifier, an endpoint.

A judge is a function from texts to one reason (or None) each; `WordList` is one, the others need a model or a network
and come from outside (`align.textmodels`). They are asked in their order, each for what none before it has found, so
that a list spares a model work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from align.runtime.errors import MissingFileError
from data_formats.cleaning.steps import Finding
from data_formats.cleaning.texts import prompt_text, reply_texts, wanted_texts
from data_formats.cleaning.units import units
from data_formats.errors import DataError
from data_formats.records import Record

Judge = Callable[[Sequence[str]], list[str | None]]


class WordList:
    """Words and phrases, found as whole words whatever their case; of Chinese, characters in a row.

    Args:
        path: a text file, one word or phrase a line; empty lines and those that begin with # are passed over.

    Raises:
        MissingFileError: no such file.
        DataError: it is not UTF-8, holds no word, or a line without letter or digit.
    """

    def __init__(self, path: str | Path):
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise DataError("is not UTF-8; save the list of words as UTF-8", path=path) from None
        except OSError as error:
            raise MissingFileError(f"{path}: cannot read the list of words ({error.strerror})") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.startswith("#"):
                continue
            phrase = tuple(units(line))
            if not phrase:
                raise DataError(
                    f"'{line.strip()[:40]}' has no letter or digit and is never found", path=path, line=number
                )
            self._by_first.setdefault(phrase[0], []).append(phrase)
        if not self._by_first:
            raise DataError("holds no word; write one a line", path=path)

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        return ["word list" if self._finds(text) else None for text in texts]

    def _finds(self, text: str) -> bool:
        words = units(text)
        return any(
            tuple(words[at : at + len(phrase)]) == phrase
            for at, word in enumerate(words)
            for phrase in self._by_first.get(word, ())
        )


class Toxicity:
    """Records with a text that one of the judges calls toxic.

    Args:
        judges: in the order they are asked.
        of: "replies" reads what a model is trained towards, so that a bad question with a good answer stays; "record"
            reads the prompt and the unwanted replies too.
        action: "drop" leaves the record out, "keep" counts only.
        batch_size: records that are judged at once.
    """

    name = "toxicity"
    looks_for = "toxic texts, by the judges that are named"

    def __init__(
        self,
        judges: Sequence[Judge],
        *,
        of: Literal["replies", "record"] = "replies",
        action: Literal["drop", "keep"] = "drop",
        batch_size: int = 256,
    ):
        self._judges, self._of, self.batch_size = tuple(judges), of, batch_size
        self._action: Literal["drop", "note"] = "drop" if action == "drop" else "note"

    def check(self, record: Record) -> Finding | None:
        return self.check_all([record])[0]

    def check_all(self, records: Sequence[Record]) -> list[Finding | None]:
        """`check` of each, with as few calls of a judge as there are judges."""
        texts = [self._texts(record) for record in records]
        found: list[Finding | None] = [None] * len(records)
        for judge in self._judges:
            asked = [(at, text) for at, own in enumerate(texts) if found[at] is None for text in own]
            if not asked:
                break
            for (at, text), reason in zip(asked, judge([text for _, text in asked]), strict=True):
                if reason is not None and found[at] is None:
                    found[at] = Finding(self._action, reason, text)
        return found

    def _texts(self, record: Record) -> list[str]:
        if self._of == "replies":
            return [text for text in wanted_texts(record) if text.strip()]
        return [text for text in (prompt_text(record), *reply_texts(record)) if text.strip()]
