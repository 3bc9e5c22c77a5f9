"""What rates rows where some are chosen: quality (how good a row is) and difficulty (how much is to be learnt from it).

`kind` says who rates; each kind has only its own keys, and says which kinds of records make sense to it. What is
missing on this machine is found without torch (`scorer_problems`); `align.curation.quality` and
`align.curation.difficulty` make the scorers.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from align.recipe.errors import path_problem
from align.recipe.judge_section import LanguageModelSection
from align.recipe.reward_section import part_problems
from align.recipe.section import LocalPath, Positive, Section
from align.runtime.packages import is_installed, missing_package
from align.runtime.paths import typed_path

REPLIES = ("Demonstration", "Comparison", "Scored")  # kinds of records that hold a prompt and a reply to it
PROMPTS = (*REPLIES, "Prompt")
EVERY = (*PROMPTS, "Document")


class RewardQualitySection(Section):
    """The score of a reward model, as in Llama 3 (2407.21783, section 4.2.3): of a demonstration's last reply; of a
    comparison that of the chosen reply minus that of the rejected one; of scored replies the best minus the worst."""

    rates: ClassVar[tuple[str, ...]] = REPLIES

    kind: Literal["reward"]
    """A reward model."""
    model_from: LocalPath
    """A finished stage (rm, pmp), a run, a folder or a hub id; ours, or any classifier with one output."""
    batch_size: Positive = 16
    """Replies scored at once."""


class LLMQualitySection(LanguageModelSection):
    """A language model behind an OpenAI-compatible endpoint, which gives points by a rubric: up to three to a
    reply, two where it holds code (Llama 3), three to a document. Comparisons and scored replies: as of `reward`."""

    rates: ClassVar[tuple[str, ...]] = (*REPLIES, "Document")

    kind: Literal["llm"]
    """A language model behind an endpoint."""
    rubric: LocalPath | None = None
    """Text file, from the working folder, with what earns 1, 2 and 3 points; by default ours."""


class ClassifierSection(Section):
    """A small text classifier, as `align data train-classifier` makes one, on a CPU. For quality it reads prompt and
    reply (`--text all`), for difficulty the prompt alone (`--text prompt`)."""

    rates: ClassVar[tuple[str, ...]] = EVERY

    kind: Literal["classifier"]
    """A small text classifier."""
    path: LocalPath
    """Its folder."""
    label: str | None = Field(None, min_length=1)
    """The label whose probability is the score; without it labels are numbers ("1" to "6"), and the score is the one
    to be expected (Deita)."""


class TagsDifficultySection(Section):
    """How many tags the prompt has (InsTag, 2308.07074: the more intentions, the more complex)."""

    rates: ClassVar[tuple[str, ...]] = PROMPTS

    kind: Literal["tags"]
    """The number of tags."""
    tagger: LocalPath | None = None
    """Folder of a trained tagger; without it rows carry their tags (`align data tag`)."""


class IFDDifficultySection(Section):
    """How little the prompt helps a model with the reply: the loss of the reply given the prompt over its loss alone,
    (instruction-following difficulty, Cherry LLM, 2308.12032). A prompt that does not help at all belongs to another
    reply: such a row has no difficulty."""

    rates: ClassVar[tuple[str, ...]] = REPLIES

    kind: Literal["ifd"]
    """Loss ratio of a language model."""
    model_from: LocalPath
    """The policy: a finished stage (base, sft), a run, a folder or a hub id."""
    max_length: Positive = 2048
    """Tokens of prompt and reply that are read; the reply's end is left out where there are more."""
    batch_tokens: Positive = 8192
    """Tokens of a batch, padding included."""
    length_free: bool = True
    """Rank every row among those with replies of about its length, since the ratio grows with length."""


class LLMDifficultySection(LanguageModelSection):
    """A language model behind an OpenAI-compatible endpoint, which says how hard a prompt is: 1, 2 or 3 (Llama 3)."""

    rates: ClassVar[tuple[str, ...]] = PROMPTS

    kind: Literal["llm"]
    """A language model behind an endpoint."""
    rubric: LocalPath | None = None
    """Text file, from the working folder, with what makes a prompt a 1, 2 or 3; by default ours."""


QualityKind = RewardQualitySection | LLMQualitySection | ClassifierSection
DifficultyKind = TagsDifficultySection | IFDDifficultySection | LLMDifficultySection | ClassifierSection
QualitySection = Annotated[QualityKind, Field(discriminator="kind")]
DifficultySection = Annotated[DifficultyKind, Field(discriminator="kind")]


def scorer_problems(key: str, section: QualityKind | DifficultyKind) -> list[str]:
    """What would keep a scorer from being used here and now: a missing folder, file, package or key of an endpoint."""
    match section:
        case LanguageModelSection():
            return part_problems(key, section)
        case RewardQualitySection() | IFDDifficultySection():
            return path_problem(f"{key}.model_from", section.model_from)
        case ClassifierSection() | TagsDifficultySection():
            name = "path" if isinstance(section, ClassifierSection) else "tagger"
            folder = getattr(section, name)
            if folder is None:
                return []
            gone = [] if typed_path(folder).is_dir() else [f"{key}.{name}: no such folder {folder}"]
            return (
                gone
                if is_installed("sklearn")
                else [*gone, missing_package(f"{key}.kind: '{section.kind}'", "sklearn")]
            )
