"""The `cleaning` section of a stage: which steps run over its records, with every threshold.

The steps themselves are those of `data_formats.cleaning`, whose docstrings give each rule and its source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from align.recipe.fields import Source
from align.recipe.filter_sections import (
    C4Section,
    GopherSection,
    LanguagesSection,
    MachineMadeSection,
    PerplexitySection,
    PIISection,
    ToxicitySection,
    crossed,
)
from align.recipe.section import Count, Positive, Section, Share
from align.recipe.section_file import read_section

Shares = dict[Annotated[int, Field(ge=1, le=100)], Share]


class LengthSection(Section):
    """Limits of length, each on its own; characters, and words (a Chinese character is one)."""

    min_prompt_chars: Count | None = None
    """Characters of a prompt at least."""
    max_prompt_chars: Positive | None = None
    """Characters of a prompt at most."""
    min_reply_chars: Count | None = None
    """Characters of a reply at least."""
    max_reply_chars: Positive | None = None
    """Characters of a reply at most."""
    min_reply_words: Count | None = None
    """Words of a reply at least; a Chinese character is one."""
    max_reply_words: Positive | None = None
    """Words of a reply at most."""

    def rules(self) -> list[tuple[str, str]]:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            return [("", "names no limit; set one, such as max_reply_chars, or remove the key")]
        return crossed(self, "prompt_chars", "reply_chars", "reply_words")


class RepetitionSection(Section):
    """Limits of repetition in wanted replies and documents; the defaults are Gopher's, null is no limit.

    `top_ngrams` and `duplicate_ngrams` are n -> share of the characters; {} switches them off.
    """

    lines: Share | None = 0.30
    """Share of the lines that repeat another."""
    paragraphs: Share | None = 0.30
    """Share of the paragraphs that repeat another."""
    line_chars: Share | None = 0.20
    """Share of the characters in repeated lines."""
    paragraph_chars: Share | None = 0.20
    """Share of the characters in repeated paragraphs."""
    top_ngrams: Shares = Field({2: 0.20, 3: 0.18, 4: 0.16})
    """`n: share` of the characters in the most frequent n-gram; {} is no limit."""
    duplicate_ngrams: Shares = Field({5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10})
    """`n: share` of the characters in repeated n-grams; {} is no limit."""
    min_words: Count = 50
    """The n-gram rules pass over texts of fewer words."""


class ApologiesSection(Section):
    """Replies that open with an apology; the share `keep` of them stays."""

    keep: Share = 0.0
    """Share of them that stays."""


class EmojiSection(Section):
    """More than `allowed` emoji in a reply and more than `max_per_100_chars`."""

    allowed: Count = 3
    """So many are always allowed."""
    max_per_100_chars: float = Field(2.0, ge=0, le=100)
    """Beyond these, so many per 100 characters."""


class ExclamationsSection(Section):
    """More than `allowed` exclamations and more than `max_share` of the sentences, or more than `max_run` in a row."""

    allowed: Count = 3
    """So many are always allowed."""
    max_share: Share = 0.5
    """Beyond these, so great a share of the sentences."""
    max_run: Positive = 3
    """Exclamation marks in a row."""


class DecontaminationSection(Section):
    """Overlap with the prompts of `against` by n-grams of `n` words, or of `chinese_n` characters."""

    against: tuple[Source, ...] = Field(min_length=1)
    """Prompts that no record may overlap with."""
    n: int = Field(13, ge=3, le=100)
    """Words of an n-gram."""
    chinese_n: int = Field(13, ge=3, le=100)
    """Characters of one, for prompts mostly in Chinese or Japanese."""
    kind: Literal["input", "input_and_label"] = "input"
    """Drop either kind of overlap, or only records that hold the answer too."""
    min_share: Share = 0.0
    """Share of a prompt's n-grams that must be in the record; at 0 one is enough."""
    reworded: Share | None = 0.6
    """Share of a prompt's words that a passage has in their order if it is the prompt reworded; null: n-grams only."""
    max_prompts: Positive = 10
    """An n-gram that more of the prompts share is not looked at."""


class ExactDuplicatesSection(Section):
    """Records with the text of an earlier one: of prompt and replies, or of the prompt alone."""

    of: Literal["record", "prompt"] = "record"
    """Equal in prompt and replies, or in the prompt alone."""


class NearDuplicatesSection(Section):
    """Records whose n-grams have a Jaccard similarity of `threshold` or more with an earlier one's."""

    threshold: float = Field(0.8, ge=0.3, le=0.95)
    """Jaccard similarity from which on two records are one."""
    num_perm: int = Field(128, ge=32, le=1024)
    """Permutations of MinHash."""
    ngram: int = Field(5, ge=1, le=50)
    """Characters or words of an n-gram."""
    unit: Literal["char", "word"] = "char"
    """What n-grams are made of."""
    of: Literal["record", "prompt"] = "record"
    """Similar in prompt and replies, or in the prompt alone."""
    seed: Count = 1
    """Of the permutations."""


class CleaningSection(Section):
    """The steps in the order they run; null switches a step off, `{}` switches it on as it is by default.

    On by default is what no training can want: NUL (stripped), halves of surrogate pairs (replaced by U+FFFD), empty
    replies, and the second of two equal records. Everything else is a judgement about taste, length or a benchmark that
    costs records a user may have meant to keep, so it is off until it is asked for. Without the section nothing is
    cleaned at all.
    """

    nul_bytes: Literal["drop", "strip"] | None = "strip"
    """Records with NUL are left out, or it is taken out of them."""
    lone_surrogates: Literal["drop", "replace"] | None = "replace"
    """Records with half of a surrogate pair are left out, or it becomes U+FFFD."""
    replacement_characters: Literal["drop", "keep"] | None = None
    """Records with U+FFFD are left out, or only counted."""
    invisible_characters: Literal["drop", "strip"] | None = None
    """Records with invisible characters are left out, or these are taken out of them."""
    mismatched_roles: bool = False
    """Leave out conversations whose turns do not alternate."""
    empty_replies: bool = True
    """Leave out records with an empty reply."""
    control_tokens: Literal["drop", "keep"] | None = None
    """Records whose text spells a control token are left out, or only counted."""
    length: LengthSection | None = None
    """Limits of length."""
    repetition: RepetitionSection | None = None
    """Limits of repetition."""
    apologies: ApologiesSection | None = None
    """Replies that open with an apology."""
    emoji: EmojiSection | None = None
    """Replies with too many emoji."""
    exclamations: ExclamationsSection | None = None
    """Replies with too many exclamations."""
    languages: LanguagesSection | None = None
    """Records in other languages; wants the extra `curation`."""
    gopher: GopherSection | None = None
    """Documents outside Gopher's limits of quality."""
    c4: C4Section | None = None
    """Lines and documents that C4 left out."""
    machine_made: MachineMadeSection | None = None
    """Unfilled templates, a model speaking of itself, misread scans."""
    toxicity: ToxicitySection | None = None
    """Toxic texts, by a list of words, a classifier or an endpoint."""
    perplexity: PerplexitySection | None = None
    """Texts that a language model finds too likely or too unlikely."""
    decontamination: DecontaminationSection | None = None
    """Overlap with other prompts."""
    pii: PIISection | None = None
    """Personal data, masked, left out with its record, or counted."""
    exact_duplicates: ExactDuplicatesSection | None = ExactDuplicatesSection()
    """The second of two equal records."""
    near_duplicates: NearDuplicatesSection | None = None
    """The second of two similar records; wants the extra `dedup`."""

    def rules(self) -> list[tuple[str, str]]:
        if any(getattr(self, name) for name in type(self).model_fields):
            return []
        return [("", "switches every step off; remove the section")]


def read_cleaning(path: str | Path) -> CleaningSection:
    """A file that holds what a recipe has under `cleaning`.

    Raises:
        MissingFileError: no such file.
        RecipeError: not YAML, or unknown keys and values, all of them.
    """
    return read_section(CleaningSection, path)
