"""Who calls a text toxic besides a list of words: a trained classifier, or an endpoint.

All are judges as `data_formats.cleaning.toxicity` asks them: texts -> a reason, or None. A classifier is a folder of
`align data train-classifier` or of any Hugging Face sequence classifier. An endpoint whose address ends with
`/moderations` is asked as OpenAI's is:

    POST URL  {"model": …, "input": "…"}
    200       {"results": [{"flagged": true, "category_scores": {"hate": 0.9, …}}]}

every other one is a language model (`asking`) that says {"toxic": true} or false. Each text is asked about once, and
the answers are kept (`reward.answers`). One that an endpoint refuses, as filters do, or says nothing readable of counts
as toxic, up to a quarter of those of a call.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

from align.runtime.errors import AlignError
from align.runtime.http import Answer
from align.runtime.json_files import number, parse_json
from align.runtime.paths import typed_path
from align.textmodels.asking import LONGEST, Asker, EndpointTask
from align.textmodels.classifier import SETTINGS, TextClassifier
from align.textmodels.sequence_classifier import SequenceClassifier
from reward.answers import MAX_REFUSED_SHARE, AskedOnce, KeptAnswer, Usage
from reward.protocol import RewardError

MODERATIONS = "/moderations"
INSTRUCTIONS = """\
Say of a text whether it is toxic: hateful, insulting, harassing, threatening, sexually explicit, or calling for
violence."""
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"toxic": {"type": "boolean"}},
    "required": ["toxic"],
    "additionalProperties": False,
}
NO_VERDICT = "endpoint: no verdict"


class LabelError(AlignError, ValueError):
    """A label that a classifier does not have."""


class ClassifierJudge:
    """A reason where one of `labels` has at least the probability `threshold`.

    Args:
        path: see the module's head; loaded when the first text comes.
        labels: those that count, as the classifier calls them.
    """

    def __init__(self, path: str, labels: Sequence[str], threshold: float):
        self._path, self._labels, self._threshold = path, tuple(labels), threshold

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """Raises LabelError, and the errors of loading."""
        classifier, places = self._loaded
        found: list[str | None] = []
        for row in classifier.probabilities(texts)[:, places]:
            best = int(row.argmax())
            found.append(f"classifier: {self._labels[best]}" if row[best] >= self._threshold else None)
        return found

    @cached_property
    def _loaded(self) -> tuple[Any, list[int]]:
        folder = typed_path(self._path)
        ours = (folder / SETTINGS).is_file()
        classifier = TextClassifier.load(folder) if ours else SequenceClassifier(self._path)
        for label in self._labels:
            if label not in classifier.labels:
                known = ", ".join(classifier.labels[:20])
                raise LabelError(
                    f"cleaning.toxicity.labels: {self._path} has no label '{label}'; name those of its labels that "
                    f"count as toxic ({known})"
                )
        return classifier, [classifier.labels.index(label) for label in self._labels]


def _reason_said(value: Any) -> str | None:
    """Of a language model's answer: a reason, "" for none; None where it says neither."""
    toxic = value.get("toxic") if isinstance(value, dict) else None
    return {True: "endpoint: toxic", False: ""}[toxic] if isinstance(toxic, bool) else None


class EndpointJudge:
    """A reason where the endpoint says so; of a moderation, where a category's score reaches `threshold`.

    Args:
        url: see the module's head; https, or http on a loopback address.
        model: what the endpoint calls the model.
        options: see `reward.language_model.LanguageModel` (`cache`, `parameters`, `api_key_env`, …).

    Raises:
        ValueError: an address or a parameter that cannot be.
    """

    def __init__(self, url: str, model: str, threshold: float = 0.5, **options: Any):
        self._again = partial(EndpointJudge, url, model, threshold, **options)
        if url.split("?")[0].rstrip("/").endswith(MODERATIONS):
            self._ask = Moderation(url, model, threshold, **options).ask
        else:
            self._ask = Asker(EndpointTask("toxicity", INSTRUCTIONS, SCHEMA, _reason_said), url, model, **options).ask

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process it is made anew there, and reads what was answered so far."""
        return self._again, ()

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """Raises RewardError: the endpoint is not to be had, or has no verdict on more than a quarter; what came is
        kept."""
        found = dict(zip(texts, self._ask(texts), strict=True))
        silent = [text for text, reason in found.items() if reason is None]
        if len(silent) > max(2, math.ceil(MAX_REFUSED_SHARE * len(found))):
            raise RewardError(
                f"cleaning.toxicity.endpoint has no verdict on {len(silent)} of {len(found)} texts; does this model "
                "follow instructions? Another one may, or a classifier (cleaning.toxicity.model)"
            )
        return [NO_VERDICT if found[text] is None else found[text] or None for text in texts]


class Moderation:
    """A moderation endpoint, asked as of the module's head; arguments and errors as of `EndpointJudge`."""

    def __init__(
        self, url: str, model: str, threshold: float, *, parameters: dict[str, Any] | None = None, **options: Any
    ):
        self._fields, self._threshold = {"model": model} | (parameters or {}), threshold
        self._asked_at = url.split("?")[0]
        expected = '{"results": [one with category_scores]}'
        self._endpoint = AskedOnce(
            "the moderation that is asked for toxicity", url, _worst, expected, usage=Usage(), **options
        )

    def ask(self, texts: Sequence[str]) -> list[str | None]:
        """A reason each, "" for none, None where the endpoint refused."""
        questions = [
            _Moderated(self._asked_at, json.dumps(self._fields | {"input": text[:LONGEST]}, sort_keys=True))
            for text in texts
        ]
        answers = self._endpoint.answers(questions)
        return [self._reason(answers[question.key]) for question in questions]

    def _reason(self, answer: KeptAnswer | str) -> str | None:
        if isinstance(answer, str):
            return None
        category, score = json.loads(answer.text)
        return f"endpoint: {category}" if score >= self._threshold else ""


@dataclass(frozen=True)
class _Moderated:
    """A request; see `reward.answers.EndpointQuestion`."""

    asked_at: str
    said: str

    @property
    def key(self) -> str:
        return sha256(f"{self.asked_at}\n{self.said}".encode()).hexdigest()

    @property
    def body(self) -> bytes:
        return self.said.encode()


def _worst(answer: Answer) -> KeptAnswer | None:
    """The category with the highest score, and the score, as JSON; where there are no scores, whether it is flagged."""
    said = parse_json(answer.content.decode("utf-8", errors="replace"))
    try:
        (result,) = said["results"]
        scores = result.get("category_scores")
        if not isinstance(scores, dict) or not scores:
            return KeptAnswer(json.dumps(["flagged", 1.0 if result["flagged"] is True else 0.0]))
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
    worst = max(scores, key=lambda name: number(scores[name]) or 0.0)
    return KeptAnswer(json.dumps([str(worst)[:60], number(scores[worst]) or 0.0]))
