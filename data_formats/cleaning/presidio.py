"""Microsoft's presidio beside our patterns: names (with a model of spaCy), and a second opinion on what both know.

Ours run first and presidio reads what they have masked, so that a find of both counts once. Without a model of spaCy
its pattern recognisers run behind a blank pipeline. Two of them are left out: that of mail addresses fetches a list of
domains from the network, and that of IP addresses takes versions for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from align.runtime.errors import MissingPackageError
from align.runtime.packages import NO_SPACY_MODEL, require_package, spacy_model
from data_formats.cleaning.pii_patterns import mask_by_pattern

ENTITIES = {
    "PERSON": "name",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "IBAN_CODE": "iban",
    "US_SSN": "ssn",
}
MIN_SCORE = 0.5  # below lie shapes without a word that says what they are: at 0.4 a sum was a phone number
_PLACEHOLDER_SIGNS = "<>_"
PIECE = re.compile(  # spaCy refuses a text of a million characters; at a line's end, where no name goes on
    r"(?s:.{1,100000}\Z|.{1,100000}(?<=\n)|.{1,100000}(?<=\s)|.{1,100000})"
)


class PresidioMask:
    """A text -> the masked text and how much of each kind was found, by our patterns and then by presidio.

    Args:
        kinds: see `data_formats.cleaning.pii.PII`.
        nlp: a pipeline of spaCy with named entities; default: the largest English one that is installed.

    Raises:
        MissingPackageError: presidio, or for names a model of spaCy, is not installed.
    """

    def __init__(self, kinds: Sequence[str], nlp: Any = None):
        require_package("cleaning.pii", "presidio_analyzer", "use by: patterns (which knows no names)")
        self._kinds, self._nlp = tuple(kinds), nlp
        self._entities = [entity for entity, kind in ENTITIES.items() if kind in kinds]
        if "name" in kinds and nlp is None and spacy_model() is None:
            raise MissingPackageError(f"cleaning.pii: {NO_SPACY_MODEL}")

    @cached_property
    def _engine(self) -> Any:
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine

        model = spacy_model()
        engine = SpacyNlpEngine(models=[{"lang_code": "en", "model_name": model or "blank"}])
        engine.nlp = {"en": self._nlp or (spacy.load(model) if model else spacy.blank("en"))}
        registry = RecognizerRegistry(supported_languages=["en"])
        registry.load_predefined_recognizers(languages=["en"])
        registry.remove_recognizer("EmailRecognizer")
        return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])

    def __call__(self, text: str) -> tuple[str, Counter[str]]:
        text, counts = mask_by_pattern(text, self._kinds)
        if not self._entities or not text.strip():
            return text, counts
        return "".join(self._masked(piece, counts) for piece in PIECE.findall(text)), counts

    def _masked(self, text: str, counts: Counter[str]) -> str:
        """A piece of a text as presidio masks it; what is found is counted in `counts`."""
        found = self._engine.analyze(text, language="en", entities=self._entities, score_threshold=MIN_SCORE)
        end = len(text)
        for one in _apart(found):
            part = text[one.start : one.end]
            if one.end > end or any(sign in part for sign in _PLACEHOLDER_SIGNS):
                continue
            kind = ENTITIES[one.entity_type]
            text = f"{text[: one.start]}<{kind.upper()}>{text[one.end :]}"
            counts[kind] += 1
            end = one.start
        return text


def _apart(found: Sequence[Any]) -> list[Any]:
    """Finds that do not overlap, the surest first and the longest of equals, from the last to the first."""
    kept: list[Any] = []
    for one in sorted(found, key=lambda one: (-one.score, one.start - one.end, one.start)):
        if all(one.end <= other.start or other.end <= one.start for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda one: -one.start)
