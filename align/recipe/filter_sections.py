"""The filters of a `cleaning` section: personal data, toxicity, languages, documents of the web, machine-made text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from align.recipe.judge_section import LanguageModelSection
from align.recipe.section import Count, Listed, LocalPath, Positive, Section, Share

PII_KINDS = ("key", "email", "iban", "card", "resident_id", "ssn", "nino", "ip", "phone")
PIIKind = Literal["key", "email", "iban", "card", "resident_id", "ssn", "nino", "ip", "phone", "name"]
MachineKind = Literal["template", "blank", "assistant", "ocr"]


def crossed(section: Section, *names: str) -> list[tuple[str, str]]:
    """A rule for each pair of limits `min_NAME`, `max_NAME` that nothing can keep."""
    broken = []
    for name in names:
        low, high = getattr(section, f"min_{name}"), getattr(section, f"max_{name}")
        if low is not None and high is not None and low > high:
            broken.append((f"min_{name}", f"{low} is more than max_{name} ({high}); nothing would be left"))
    return broken


class PIISection(Section):
    """Personal data; a word alone (`pii: mask`) is its `action`."""

    action: Literal["mask", "drop", "keep"] = "mask"
    """`<EMAIL>`, `<PHONE>`, … take its place, the record is left out, or it is only counted."""
    kinds: Annotated[tuple[PIIKind, ...], Listed] = Field(PII_KINDS, min_length=1)
    """Which kinds; `name` wants presidio and a model of spaCy."""
    by: Literal["auto", "patterns", "presidio"] = "auto"
    """Our patterns alone, or presidio as well; `auto` asks presidio where it is installed."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str) else value

    def rules(self) -> list[tuple[str, str]]:
        if "name" in self.kinds and self.by == "patterns":
            return [("kinds", "no pattern tells a name; use by: presidio, or leave name out")]
        return []


class ToxicityEndpointSection(LanguageModelSection):
    """A language model behind an OpenAI-compatible endpoint, or a moderation: an address that ends with
    `/moderations`."""

    cache: LocalPath | None = None
    """File of JSON lines that keeps the answers, so that a run that was stopped asks only what is missing."""


class ToxicitySection(Section):
    """Toxic texts, by whatever of a list, a classifier and an endpoint is named, asked in this order."""

    words: LocalPath | None = None
    """Text file with a word or phrase a line; found as whole words, of Chinese as characters in a row."""
    model: LocalPath | None = None
    """Folder of `align data train-classifier`, or folder or hub id of any sequence classifier."""
    labels: Annotated[tuple[str, ...], Listed] = Field(("toxic",), min_length=1)
    """Labels of `model` that count."""
    endpoint: ToxicityEndpointSection | None = None
    """An endpoint."""
    threshold: Share = 0.5
    """Probability of a label, or score of a moderation's category, from which on a text is toxic."""
    of: Literal["replies", "record"] = "replies"
    """What a model is trained towards, or the prompt and unwanted replies too."""
    action: Literal["drop", "keep"] = "drop"
    """Leave the record out, or only count it."""

    def rules(self) -> list[tuple[str, str]]:
        if self.words is None and self.model is None and self.endpoint is None:
            return [("", "names nobody who tells; set words, model or endpoint")]
        return []


class LanguagesSection(Section):
    """Records that are in another language than those to keep; wants the extra `curation`."""

    keep: Annotated[tuple[str, ...], Listed] = Field(min_length=1)
    """ISO 639-1 codes: `[en, zh]`."""
    min_probability: Share = 0.6
    """Of the other language, at least; a record that is less surely in it passes."""


class GopherSection(Section):
    """Documents outside Gopher's limits (Rae et al. 2021, A1.1); null is no limit."""

    min_words: Count | None = 50
    """Words at least; a Chinese character is one."""
    max_words: Positive | None = 100_000
    """Words at most."""
    min_mean_word: float | None = Field(3.0, ge=0)
    """Characters of a word on average, at least; not looked at in Chinese."""
    max_mean_word: float | None = Field(10.0, gt=0)
    """Characters of a word on average, at most; not looked at in Chinese."""
    max_symbols: float | None = Field(0.1, ge=0)
    """Hashes, or ellipses, for each word."""
    max_bullet_lines: Share | None = 0.9
    """Share of the lines that begin with a bullet."""
    max_ellipsis_lines: Share | None = 0.3
    """Share of the lines that end with an ellipsis."""
    min_alphabetic: Share | None = 0.8
    """Share of the words with a letter."""
    min_stop_words: Count | None = 2
    """Different stop words (the, be, to, of, and, that, have, with; of Chinese 的, 是, 在, …)."""

    def rules(self) -> list[tuple[str, str]]:
        return crossed(self, "words", "mean_word")


class C4Section(Section):
    """C4's heuristics for documents (Raffel et al. 2020, 2.2): lines are taken out, then what is left is judged."""

    terminal_punctuation: bool = True
    """Lines must end with a full stop, question or exclamation mark or closing quotation mark."""
    min_line_words: Count | None = 5
    """Words of a line at least."""
    min_sentences: Count | None = 3
    """Sentences at least, of what is left."""
    curly_brackets: bool = False
    """Whether documents with a curly bracket stay."""
    bad_words: LocalPath | None = None
    """Text file with a word a line; documents with one are left out."""


class MachineMadeSection(Section):
    """Unfilled templates, blanks, a model speaking of itself, misread scans, by rules."""

    kinds: Annotated[tuple[MachineKind, ...], Listed] = Field(("template", "blank", "assistant", "ocr"), min_length=1)
    """`{{name}}` and `[INSERT …]`; `[Your Name]`; "As an AI language model"; misread words and wrong encodings."""
    action: Literal["drop", "keep"] = "drop"
    """Leave the record out, or only count it."""


class PerplexitySection(Section):
    """Texts outside limits of nats a token (the logarithm of the perplexity) under a causal language model."""

    model: LocalPath
    """Folder or hub id."""
    window: int = Field(1024, ge=16)
    """Tokens that a token may be predicted from."""
    min_nats: float | None = Field(None, ge=0)
    """Nats a token at least."""
    max_nats: float | None = Field(None, gt=0)
    """Nats a token at most."""

    def rules(self) -> list[tuple[str, str]]:
        if self.min_nats is None and self.max_nats is None:
            return [("", "names no limit; set min_nats or max_nats, or remove the key")]
        return crossed(self, "nats")
