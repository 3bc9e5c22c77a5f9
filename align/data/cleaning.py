"""A recipe's `cleaning` section -> the steps, ready to run, and the table of what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from align.data.hub import hub_dataset
from align.recipe.cleaning_check import cleaning_problems
from align.recipe.cleaning_section import CleaningSection
from align.recipe.errors import RecipeError
from align.recipe.fields import Source
from align.recipe.filter_sections import C4Section, PerplexitySection, ToxicitySection
from align.runtime.errors import AlignError
from align.runtime.paths import typed_path
from align.runtime.ranks import of_first
from align.runtime.table import table
from data_formats import cleaning, stream
from data_formats.records import Prompt, Record

# Key -> step, in the order they run: text first, then what each record is by itself, then what it is beside others.
# A key that holds one word gives it as `action`, one that holds a section gives the section's keys.
STEPS = {
    "nul_bytes": cleaning.NulBytes,
    "lone_surrogates": cleaning.LoneSurrogates,
    "replacement_characters": cleaning.ReplacementCharacters,
    "invisible_characters": cleaning.InvisibleCharacters,
    "mismatched_roles": cleaning.MismatchedRoles,
    "empty_replies": cleaning.EmptyReplies,
    "control_tokens": cleaning.ControlTokens,
    "length": cleaning.Length,
    "repetition": cleaning.Repetition,
    "apologies": cleaning.Apologies,
    "emoji": cleaning.Emoji,
    "exclamations": cleaning.Exclamations,
    "languages": cleaning.Languages,
    "gopher": cleaning.Gopher,
    "c4": cleaning.C4,
    "machine_made": cleaning.MachineMade,
    "toxicity": cleaning.Toxicity,
    "perplexity": cleaning.Perplexity,
    "decontamination": cleaning.Decontamination,
    "pii": cleaning.PII,
    "exact_duplicates": cleaning.ExactDuplicates,
    "near_duplicates": cleaning.NearDuplicates,
}


class CleaningError(AlignError, RuntimeError):
    """The first rank could not clean."""


def _c4(section: C4Section) -> cleaning.C4:
    words = None if section.bad_words is None else cleaning.WordList(typed_path(section.bad_words))
    return cleaning.C4(**section.model_dump(exclude={"bad_words"}), bad_words=words)


def _toxicity(section: ToxicitySection) -> cleaning.Toxicity:
    judges: list[Any] = [] if section.words is None else [cleaning.WordList(typed_path(section.words))]
    if section.model is not None or section.endpoint is not None:  # which import torch
        from align.textmodels.toxicity import ClassifierJudge, EndpointJudge

        if section.model is not None:
            judges.append(ClassifierJudge(section.model, section.labels, section.threshold))
        if section.endpoint is not None:
            options = {name: getattr(section.endpoint, name) for name in type(section.endpoint).model_fields}
            judges.append(EndpointJudge(threshold=section.threshold, **options))
    return cleaning.Toxicity(judges, of=section.of, action=section.action)


def _perplexity(section: PerplexitySection) -> cleaning.Perplexity:
    from align.textmodels.perplexity import ModelPerplexity

    nats = ModelPerplexity(section.model, section.window)
    return cleaning.Perplexity(nats, min_nats=section.min_nats, max_nats=section.max_nats)


WITH_HELPERS = {"c4": _c4, "toxicity": _toxicity, "perplexity": _perplexity}  # steps that are given lists and models


def build_steps(section: CleaningSection, evaluation: Iterable[Record] = ()) -> list[cleaning.CleaningStep]:
    """The steps that a section switches on, in the order they run.

    Args:
        section: of the stage.
        evaluation: the records of `section.decontamination.against`.

    Raises:
        RecipeError: a package, a list or a model is not there.
    """
    if problems := cleaning_problems(section):
        raise RecipeError(problems)
    steps: list[cleaning.CleaningStep] = []
    for name, make in STEPS.items():
        asked = getattr(section, name)
        if asked is None or asked is False:
            continue
        if asked is True:
            steps.append(make())
        elif isinstance(asked, str):
            steps.append(make(asked))  # type: ignore[call-arg]
        elif name == "decontamination":
            steps.append(cleaning.Decontamination(evaluation, **asked.model_dump(exclude={"against"})))
        elif name in WITH_HELPERS:
            steps.append(WITH_HELPERS[name](asked))
        else:
            steps.append(make(**asked.model_dump()))
    return steps


def build_cleaner(section: CleaningSection, evaluation: Iterable[Record] = ()) -> cleaning.Cleaner:
    """A cleaner of `build_steps`."""
    return cleaning.Cleaner(build_steps(section, evaluation))


def evaluation_prompts(section: CleaningSection) -> list[Record]:
    """The prompts of `section.decontamination.against`, paths as they stand there. Errors: see `read`."""
    against = section.decontamination.against if section.decontamination else ()
    return [
        prompt
        for source in against
        for prompt in stream(
            source.path if source.hub is None else hub_dataset(source),
            Prompt,
            format=source.format,
            max_row_mb=source.max_row_mb,
            limit=source.limit,
        )
    ]


def clean_records(
    records: Iterable[Record],
    section: CleaningSection,
    read_evaluation: Callable[[Sequence[Source]], Iterable[Record]],
    *,
    alone: bool = False,
) -> tuple[list[Any], cleaning.CleaningReport]:
    """What is left of a stage's records, and the report. Where a model is asked, which need not say the same twice, the
    first rank asks and all others go on with what it left.

    Args:
        records: of all sources of the stage, so that duplicates are found across them.
        section: of the stage.
        read_evaluation: reads the sources of `section.decontamination.against` as prompts; called if there are any.
        alone: whether this rank cleans while no other does.
    """

    def cleaned() -> tuple[list[Any], cleaning.CleaningReport]:
        evaluation = read_evaluation(section.decontamination.against) if section.decontamination else ()
        cleaner = build_cleaner(section, evaluation)
        return list(cleaner.clean(records)), cleaner.report

    if alone or not asks_model(section):
        return cleaned()
    return of_first(cleaned, lambda words: CleaningError(f"the first rank could not clean ({words})"))


def asks_model(section: CleaningSection) -> bool:
    """Whether a step asks a model, here or behind an endpoint."""
    toxicity = section.toxicity
    return section.perplexity is not None or (
        toxicity is not None and (toxicity.model is not None or toxicity.endpoint is not None)
    )


def cleaning_table(report: cleaning.CleaningReport) -> str:
    """The report as a plain text table: a line per step, and below it one per reason with its first example."""
    return table(cleaning.HEADER, report.as_rows())
