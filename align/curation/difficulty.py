"""Difficulty of rows: the number of a prompt's tags, how little the prompt helps a model with the reply, or what a
language model says.

InsTag (2308.07074) calls a prompt complex by its number of tags; Llama 3 (2407.21783, section 4.2.3) takes that, and
what its model says on a scale of three. The loss ratio is in `ifd`. A small classifier may have learnt any of them, or
Deita's complexity (`classified`). All but the loss ratio look at the prompt alone, which is whatever stands before the
last reply; of a document a classifier reads the text, and nobody else finds a difficulty in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.curation.classified import ClassifierScore
from align.curation.kept import kept_in
from align.curation.rubrics import DIFFICULTY, asked, shown, with_own_text
from align.curation.scorer import FindModel, RecordScorer, ScorerError, require_kinds
from align.recipe.scorer_sections import (
    ClassifierSection,
    DifficultyKind,
    IFDDifficultySection,
    LLMDifficultySection,
    TagsDifficultySection,
)
from align.runtime import files
from align.runtime.paths import typed_path
from align.textmodels.classifier import TextClassifier
from data_formats.cleaning.texts import prompt_text, turns, whole_text
from data_formats.records import Demonstration, Message, Record


def difficulty_scorer(section: DifficultyKind, find_model: FindModel, folder: Path | None = None) -> RecordScorer:
    """The scorer that a recipe's section names. Arguments and errors as of `quality.quality_scorer`."""
    match section:
        case IFDDifficultySection():
            from align.curation.ifd import IFD
            from align.evaluation.scoring import best_device
            from align.models.load import load_saved
            from align.models.named import policy_at, speaks_as
            from align.models.tokenizer import load_saved_tokenizer

            path = policy_at(find_model(section.model_from))
            tokenizer = load_saved_tokenizer(speaks_as(path))
            options = section.model_dump(include={"max_length", "batch_tokens", "length_free"})
            made_with = {"ifd": path, "files": files.stamp(path), "max_length": section.max_length}
            model = load_saved(path, tokenizer).to(best_device())
            return IFD(model, tokenizer, kept=kept_in(folder, made_with), **options)
        case LLMDifficultySection():
            return LLMDifficulty(section, folder)
        case ClassifierSection():
            return ClassifierScore.of(section, lambda one: prompt_text(one) or whole_text(one))
        case TagsDifficultySection():
            tagger = None if section.tagger is None else TextClassifier.load(typed_path(section.tagger))
            return TagCount(tagger, called=f"the tagger {section.tagger}")


class TagCount:
    """How many tags a prompt has; a `RecordScorer`.

    Args:
        tagger: a classifier that gives any number of labels: how many are to be expected, the sum of their
            probabilities. None: rows carry their tags.
        called: the tagger in errors.

    Raises:
        ScorerError: a classifier that gives each text one label.
    """

    def __init__(self, tagger: TextClassifier | None = None, *, called: str = "the tagger"):
        if tagger is not None and not tagger.multi_label:
            raise ScorerError(f"{called} gives every text one label; train one with several (multi_label)")
        self.name, self._tagger = "tags", tagger

    def score(self, records: Sequence[Record]) -> list[float | None]:
        """None: a row without tags, or, where a tagger reads prompts, without a prompt.

        Raises:
            ScorerError: documents; no row carries a tag.
        """
        require_kinds(records, self.name, TagsDifficultySection.rates)
        if self._tagger is None:
            if records and not any(record.tags for record in records):
                raise ScorerError("no row carries tags: tag them first (align data tag), or name a tagger")
            return [float(len(set(record.tags))) if record.tags else None for record in records]
        texts = [prompt_text(record) for record in records]
        counts = self._tagger.probabilities(texts).sum(axis=1).tolist()
        return [count if text.strip() else None for count, text in zip(counts, texts, strict=True)]


class LLMDifficulty:
    """What a language model says of a prompt: 0 is easy, 0.5 in between, 1 hard; a `RecordScorer`.

    Args:
        section: the endpoint, and maybe a rubric of one's own.
        folder: where answers are kept.
    """

    def __init__(self, section: LLMDifficultySection, folder: Path | None = None):
        self.name = "llm"
        self._asker = with_own_text(section.rubric, (DIFFICULTY,))[DIFFICULTY].asker(section, folder)

    def score(self, records: Sequence[Record]) -> list[float | None]:
        """None: there is no prompt, or the answer could not be read, or was refused.

        Raises:
            ScorerError: documents.
            RewardError: the endpoint is not to be had, refuses more than a quarter, or says nothing that can be read.
        """
        require_kinds(records, self.name, LLMDifficultySection.rates)
        prompts = [prompt_of(record) for record in records]
        texts = [shown(prompt, one.tools) for prompt, one in zip(prompts, records, strict=True) if prompt]
        said = iter(asked(self._asker, texts))
        return [next(said) if prompt else None for prompt in prompts]


def prompt_of(record: Record) -> tuple[Message, ...]:
    """The turns before the last reply; none of a document, or of a demonstration that nobody began."""
    if isinstance(record, Demonstration):
        found = record.last_exchange()
        return () if found is None else found[0]
    return turns(record)
