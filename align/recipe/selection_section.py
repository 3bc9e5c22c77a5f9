"""`selection` of a stage, or in a file of its own for `align data select`: which of the rows are learnt from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from align.recipe.errors import path_problem
from align.recipe.scorer_sections import (
    DifficultySection,
    IFDDifficultySection,
    QualitySection,
    RewardQualitySection,
    scorer_problems,
)
from align.recipe.section import Count, LocalPath, Positive, Section, Share
from align.recipe.section_file import read_section
from align.runtime.packages import is_installed, missing_package


class SelectionSection(Section):
    """Choose rows by quality × difficulty without semantic duplicates (Llama 3, 2407.21783, section 4.2.3; Deita,
    2312.15685).

    Rows are embedded and clustered. In each cluster they stand in the order of quality × difficulty, and one that is
    more alike than `max_cosine` to a better one that is kept goes; then the budget is shared out. Without `quality` and
    `difficulty` all rows are worth the same, and those that are least like the others go first: diversity alone
    chooses. Held-out rows are set apart before and are never chosen among.
    """

    keep: float = Field(0.5, gt=0)
    """How many rows are kept at most: up to 1 a share of all, above 1 a number."""
    quality: QualitySection | None = None
    """What says how good a row is; without it all rows are as good."""
    difficulty: DifficultySection | None = None
    """What says how much is to be learnt from a row; without it as much from all."""
    top_quality: float | None = Field(None, gt=0, le=1)
    """Keep only rows in this share of the best by quality (Llama 3: 0.25); all that have the best score are in."""
    max_cosine: Share = 0.95
    """Rows of a cluster that are more alike than this are one, and the best stays; 1 takes none for another."""
    embeddings: LocalPath | None = None
    """Folder or hub id of a sentence-transformers model, or of a causal language model (a finished stage too); without
    it hashed TF-IDF, by scikit-learn."""
    of: Literal["record", "prompt"] = "record"
    """Embed the prompt with the wanted reply, or the prompt alone."""
    clustering: Literal["kmeans", "leader"] = "kmeans"
    """k-means of a given number of clusters, or leaders: a row joins the nearest leader within `leader_cosine`, or
    becomes one, so that the data say how many there are."""
    clusters: Positive | None = None
    """Clusters of k-means; by default the square root of the number of rows."""
    leader_cosine: Share | None = None
    """Cosine to a leader from which on a row is of its cluster; by default that which of N rows one pair in
    sqrt(N) reaches, since what a cosine means depends on what embeds."""
    spread: Literal["proportional", "even", "best"] = "proportional"
    """How the budget is shared out: to clusters by their size, to all clusters alike (rare ones stay whole, large ones
    shrink), or to the best rows wherever they lie (Deita)."""
    random: bool = False
    """The control: draw as many rows at random as would be kept."""
    seed: Count = 0
    """Of the clusters, of hashed TF-IDF and of `random`."""

    def rules(self) -> list[tuple[str, str]]:
        broken = super().rules()
        if self.keep > 1 and not self.keep.is_integer():
            broken.append(("keep", f"{self.keep:g} is above 1, so a number of rows: make it whole, or a share to 1"))
        if self.top_quality is not None and self.quality is None:
            broken.append(("top_quality", "needs quality, which says what is good"))
        if self.clustering == "leader" and self.clusters is not None:
            broken.append(("clusters", "leaders are as many as the data need; remove it, or set clustering to kmeans"))
        if self.clustering == "kmeans" and self.leader_cosine is not None:
            broken.append(("leader_cosine", "k-means has no leaders; remove it, or set clustering to leader"))
        return broken

    def models(self) -> Iterator[tuple[str, str]]:
        """The stages, folders or hub ids that it reads models from, by key."""
        if self.embeddings is not None:
            yield "embeddings", self.embeddings
        for key, part in (("quality", self.quality), ("difficulty", self.difficulty)):
            if isinstance(part, RewardQualitySection | IFDDifficultySection):
                yield f"{key}.model_from", part.model_from

    def files(self) -> Iterator[tuple[str, str]]:
        """The files and folders that its scorers read beside these, by key."""
        for key, part in (("quality", self.quality), ("difficulty", self.difficulty)):
            for name in ("path", "tagger", "rubric"):
                if (path := getattr(part, name, None)) is not None:
                    yield f"{key}.{name}", path

    def budget(self, rows: int) -> int:
        """How many of so many rows may be kept."""
        return min(rows, int(self.keep) if self.keep > 1 else round(self.keep * rows))


def selection_problems(key: str, section: SelectionSection, records: str, stages: tuple[str, ...] = ()) -> list[str]:
    """What would keep a selection from being made here: packages, folders, scorers that do not know such records.

    Args:
        key: where the section stands, for the sentences.
        records: the kind of record chosen among.
        stages: names that stand for stages of the recipe where a model is named; these are looked at elsewhere.
    """
    needs = section.embeddings is None or section.clustering == "kmeans"
    found = [missing_package(key, "sklearn")] if needs and not is_installed("sklearn") else []
    if section.embeddings is not None and section.embeddings not in stages:
        found += path_problem(f"{key}.embeddings", section.embeddings)
    for name, part in (("quality", section.quality), ("difficulty", section.difficulty)):
        if part is None:
            continue
        if records not in part.rates:
            known = ", ".join(part.rates)
            found.append(f"{key}.{name}: '{part.kind}' cannot rate a {records} (it rates {known}); name another kind")
        if getattr(part, "model_from", None) not in stages:
            found += scorer_problems(f"{key}.{name}", part)
    return found


def read_selection(path: str | Path) -> SelectionSection:
    """A file that holds what a recipe has under `selection`.

    Raises:
        MissingFileError: no such file.
        RecipeError: not YAML, or unknown keys and values, all of them.
    """
    return read_section(SelectionSection, path)
