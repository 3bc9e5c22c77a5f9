"""What prompts are about, as tags: those that a model behind an endpoint calls freely, and those of a trained tagger.

As InsTag (Lu et al. 2023, 2308.07074, section 2.2) has it, the model names all intentions in what is asked, each with a
word of explanation, and nobody gives it a list. `align.curation.vocabulary` makes names of these. Departures: a whole
conversation gets its tags in one question, where InsTag asks about each turn; the words of the question are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from align.curation.vocabulary import LONGEST_TAG
from align.runtime.errors import AlignError
from align.textmodels.asking import Asker, EndpointTask
from align.textmodels.classifier import TextClassifier
from data_formats.cleaning.texts import prompt_text
from data_formats.records import Record

AT_ONCE = 512  # records whose texts are held, and asked about, at the same time
MOST_SAID = 32  # tags that are taken from one answer
LIKELY = 0.2  # from which probability on a tagger gives a tag: rare ones are seldom as likely as not (docs/curation.md)

INSTRUCTIONS = """\
A user writes to an assistant. Name what is wanted of the assistant, as tags for a catalogue of such requests.

A tag names one thing in one to four English words: a task ("spelling check", "role play", "text summarization"), a \
subject ("organic chemistry", "sorting algorithm"), or a condition on the answer ("output as JSON"). Name every one \
that is needed to tell what is asked, the most important first, usually two to six, and nothing that is not there. \
Prefer a word that many requests could share to one that fits this alone. Explain each tag in a few words."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tags": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"tag": {"type": "string"}, "explanation": {"type": "string"}},
                "required": ["tag", "explanation"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["tags"],
    "additionalProperties": False,
}


class TaggingError(AlignError, ValueError):
    """Records that cannot be tagged, or a classifier that is no tagger."""


def tags_said(value: Any) -> list[str] | None:
    """The tags of an answer: {"tags": [{"tag", …}]}, or the list alone, of objects or texts; None where it is neither.

    What is no text in the list is left out.
    """
    listed = value.get("tags") if isinstance(value, dict) else value
    if not isinstance(listed, list):
        return None
    named = [one.get("tag") if isinstance(one, dict) else one for one in listed[:MOST_SAID]]
    said = [one.strip() for one in named if isinstance(one, str) and one.strip()]
    return said if said or not listed else None


TAGS = EndpointTask("tags", INSTRUCTIONS, SCHEMA, tags_said)


@dataclass(slots=True)
class RawTags:
    """What a model called the rows.

    Attributes:
        rows: the tags of each, in order; none where it has no text or no answer that can be read.
        left_out: how many rows and tags are not there, by reason.
    """

    rows: list[tuple[str, ...]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def ask_tags(records: Iterable[Record], asker: Asker[list[str]], tell: Callable[[int], None]) -> RawTags:
    """Every record's tags as a model calls them. What was answered before is not asked again.

    Args:
        tell: hears how many records are done.

    Raises:
        RewardError: the endpoint is not to be had, or answers no JSON.
    """
    found, interned = RawTags(), dict[str, str]()
    rest = iter(records)
    while group := list(islice(rest, AT_ONCE)):
        texts = [prompt_text(record) for record in group]
        asked = [text for text in texts if text.strip()]
        answers = iter(asker.ask(asked) if asked else ())
        for text in texts:
            said = next(answers) if text.strip() else None
            if said is None:
                found.left_out["rows without an answer" if text.strip() else "rows without a prompt"] += 1
            short = [tag for tag in said or () if len(tag) <= LONGEST_TAG]
            found.left_out[f"tags of more than {LONGEST_TAG} characters"] += len(said or ()) - len(short)
            found.rows.append(tuple(interned.setdefault(tag, tag) for tag in dict.fromkeys(short)))
        tell(len(found.rows))
    return found


class Tagger:
    """Tags by a small classifier that was trained on tagged rows (`align data train-classifier --label tags`).

    Args:
        classifier: one that gives any number of labels.
        called: it in errors.

    Raises:
        TaggingError: it gives each text one label.
    """

    def __init__(self, classifier: TextClassifier, *, called: str = "the classifier"):
        if not classifier.multi_label:
            raise TaggingError(f"{called} gives each text one label; a tagger is trained with --label tags")
        self._classifier = classifier

    @classmethod
    def load(cls, folder: Path) -> Tagger:
        """The one in a folder. Errors as of `TextClassifier.load`, and of the class."""
        return cls(TextClassifier.load(folder), called=str(folder))

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All tags that it can give."""
        return self._classifier.labels

    def tags(self, records: Sequence[Record]) -> list[tuple[str, ...]]:
        """Each record's tags, the likeliest first: those likely enough (`LIKELY`), or the likeliest where none is; none
        where there is no prompt."""
        texts = [prompt_text(record) for record in records]
        found = self._classifier.probabilities(texts)
        return [chosen(row, self.vocabulary) if text.strip() else () for row, text in zip(found, texts, strict=True)]


def chosen(probabilities_L: np.ndarray, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that are likely enough (`LIKELY`), the likeliest first; the likeliest one where none is."""
    likely = np.flatnonzero(probabilities_L >= LIKELY)
    if not len(likely):
        likely = probabilities_L.argmax(keepdims=True)
    return tuple(labels[at] for at in likely[np.argsort(-probabilities_L[likely], kind="stable")])
