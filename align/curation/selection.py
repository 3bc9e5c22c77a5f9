"""Rows are chosen as a recipe's `selection` says: embedded, clustered, rated, and kept by quality × difficulty.

    choice = select(records, section, folder)
    kept = [record for record, row in zip(records, choice.rows) if row.kept]

What takes long lies in `folder/work` and is not made twice: the vectors (float16, in a file, written chunk by chunk,
gone on with after a kill, made anew for other texts or another model) and what scorers have said of each row. So
another `keep`, limit or number of clusters takes seconds. The folder may be removed.

The rows of a set are in memory, as a stage has them; beside them 1,000,000 rows take 0.5 GB of disk for vectors of 256
numbers, which are read block by block, some 60 MB for the figures of each, and while they are rated 0.3 KB a reply.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.curation import choosing, scale
from align.curation.choosing import KEPT, NOT_DRAWN, REASONS, Choice
from align.curation.clusters import kmeans, leaders, usual_cosine
from align.curation.scorer import FindModel
from align.recipe.selection_section import SelectionSection
from align.runtime import files
from align.runtime.json_files import read_object
from align.runtime.made import MadeWith
from align.textmodels.embeddings import Embedder, load_embedder
from align.textmodels.vectors import CHUNK, chunks
from data_formats.cleaning.texts import prompt_text, whole_text
from data_formats.records import Record

logger = logging.getLogger(__name__)

WORK, VECTORS, PROGRESS = "work", "vectors.npy", "embedded.json"
Scores = list[float | None]


@dataclass(frozen=True, slots=True)
class ChosenRow:
    """What became of a row, and why.

    Attributes:
        row: its number, from 1.
        nearest: the row of its cluster that stood before it and is most like it, and is no duplicate; None: there was
            none, or it was not looked at.
        reason: of the drop, one of `choosing.REASONS`; "" where it is kept.
    """

    row: int
    cluster: int
    quality: float | None
    difficulty: float | None
    worth: float | None
    nearest: int | None
    cosine: float | None
    kept: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What a selection found: arrays over N rows, and words of how."""

    choice: Choice
    clusters_N: np.ndarray
    quality: Scores | None
    difficulty: Scores | None
    worth: Scores | None
    embedded_by: str

    @property
    def kept_N(self) -> np.ndarray:
        """Whether each row is kept."""
        return self.choice.kept_N

    def row(self, at: int) -> ChosenRow:
        """What became of the row at place `at`, from 0."""
        scores = (None if one is None else one[at] for one in (self.quality, self.difficulty, self.worth))
        fate, near = int(self.choice.fate_N[at]), int(self.choice.nearest_N[at])
        beside = (None, None) if near < 0 else (near + 1, round(float(self.choice.cosine_N[at]), 4))
        reason = "" if fate == KEPT else REASONS[fate]
        return ChosenRow(at + 1, int(self.clusters_N[at]), *scores, *beside, fate == KEPT, reason)

    def rows(self) -> Iterator[ChosenRow]:
        """All of them."""
        return map(self.row, range(len(self.clusters_N)))

    def figures(self) -> dict[str, Any]:
        """Counts for a summary: rows, kept, dropped by reason, clusters, rows that a scorer could not rate."""
        fates = Counter(self.choice.fate_N.tolist())
        sizes = np.bincount(self.clusters_N)
        found: dict[str, Any] = {"rows": len(self.clusters_N), "kept": fates[KEPT]}
        found["dropped"] = {REASONS[fate]: count for fate, count in sorted(fates.items()) if fate != KEPT}
        found |= {"clusters": len(sizes), "largest_cluster": int(sizes.max()), "embedded_by": self.embedded_by}
        for name in ("quality", "difficulty"):
            scores = getattr(self, name)
            if scores is not None:
                found[f"without_{name}"] = scores.count(None)
                found[f"mean_{name}"] = _mean(scores, np.ones(len(scores), bool))
                found[f"mean_{name}_kept"] = _mean(scores, self.kept_N)
        return found


def _mean(scores: Scores, of_N: np.ndarray) -> float | None:
    told = [score for score, taken in zip(scores, of_N, strict=True) if taken and score is not None]
    return math.fsum(told) / len(told) if told else None


def select(
    records: Sequence[Record], section: SelectionSection, folder: Path, find_model: FindModel = str
) -> Selection:
    """Choose among the records of a set.

    Args:
        records: all of one kind, at least one.
        section: how.
        folder: `work` in it keeps vectors and scores for the next time.
        find_model: gives the folder or hub id of a model that the section names.

    Raises:
        MissingPackageError, MissingFileError, ModelFileError, EncoderError: what it needs is not there, or torn.
        ScorerError: a scorer does not know such records.
        StorageError: nothing can be written there.
    """
    work = folder / WORK
    texts = _Texts(records, section.of)
    named = None if section.embeddings is None else find_model(section.embeddings)
    vectors_ND, embedded_by = embedded(texts, named, section, work)
    clusters_N = _clusters(vectors_ND, section)
    quality, difficulty = _scores(records, section, work, find_model)
    worth = _worth(quality, difficulty)
    low_N = None
    if section.top_quality is not None and quality is not None:
        low_N = ~np.array(scale.is_high_quality(quality, section.top_quality), bool)
    choice = choosing.choose(
        vectors_ND,
        clusters_N,
        _as_array(worth),
        max_cosine=section.max_cosine,
        budget=section.budget(len(records)),
        spread=section.spread,
        low_N=low_N,
    )
    if section.random:
        choice = drawn(choice, section.seed)
    return Selection(choice, clusters_N, quality, difficulty, worth, embedded_by)


def drawn(choice: Choice, seed: int) -> Choice:
    """As many rows as a choice keeps, at random."""
    count = len(choice.fate_N)
    fate_N = np.full(count, NOT_DRAWN, np.uint8)
    fate_N[np.random.default_rng(seed).choice(count, int(choice.kept_N.sum()), replace=False)] = KEPT
    return Choice(fate_N, choice.nearest_N, choice.cosine_N)


def text_of(record: Record, of: str) -> str:
    """What is embedded of a record: the prompt's turns, and the replies that are learnt from, or the prompt alone (of a
    document its text either way)."""
    return whole_text(record) if of == "record" else prompt_text(record) or whole_text(record)


class _Texts(Sequence[str]):
    """What is embedded of each record, made when it is asked for: no second copy of a set is in memory."""

    def __init__(self, records: Sequence[Record], of: str):
        self._records, self._of = records, of

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [text_of(record, self._of) for record in self._records[at]]
        return text_of(self._records[at], self._of)


def embedded(texts: Sequence[str], model: str | None, section: SelectionSection, work: Path) -> tuple[np.ndarray, str]:
    """The vectors of all texts, float16 (N, D) in `work`, and what made them; as far as they are not there."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    seed = section.seed if model is None else None
    settings = {"embeddings": model, "files": files.stamp(model or ""), "rows": len(texts), "seed": seed}
    settings["texts"] = digest.hexdigest()
    file, progress = work / VECTORS, work / PROGRESS
    MadeWith(work).require(file, settings)
    known = (read_object(progress, f"remove {work}") or {}) if _is_whole(file) else {}
    done = known.get("rows", 0)
    if done == len(texts):
        return np.load(file, mmap_mode="r"), known["by"]
    if not done:
        files.remove(progress)
    embedder = load_embedder(model, texts, seed=section.seed)
    write_vectors(file, progress, embedder, texts, done)
    return np.load(file, mmap_mode="r"), embedder.name


def _is_whole(file: Path) -> bool:
    """Whether there is a matrix that is as long as it says, be its rows written or not."""
    try:
        return np.load(file, mmap_mode="r").ndim == 2
    except (OSError, ValueError):
        return False


def write_vectors(file: Path, progress: Path, embedder: Embedder, texts: Sequence[str], done: int) -> None:
    """Write the vectors behind the first `done`, chunk by chunk; `progress` says after each how many are there."""
    from align.runs.progress import StageProgress

    matrix = np.lib.format.open_memmap(file, "r+") if done else None
    with StageProgress("embedded", len(texts), start=done) as shown:
        for rows in chunks(len(texts), CHUNK):
            if rows.stop <= done:
                continue
            part = embedder.embed(texts[rows])
            if matrix is None:
                matrix = np.lib.format.open_memmap(file, "w+", np.float16, (len(texts), part.shape[1]))
            matrix[rows] = part
            matrix.flush()
            files.write_json(progress, {"rows": rows.stop, "by": embedder.name})
            shown.update(rows.stop)


def _clusters(vectors_ND: np.ndarray, section: SelectionSection) -> np.ndarray:
    if section.clustering == "leader":
        cosine = section.leader_cosine
        if cosine is None:  # duplicates are looked for within a cluster
            cosine = min(usual_cosine(vectors_ND, section.seed), section.max_cosine)
            logger.info("leaders lead what is as alike as %.2f (leader_cosine)", cosine)
        return np.unique(leaders(vectors_ND, cosine), return_inverse=True)[1]
    return kmeans(vectors_ND, section.clusters or max(1, round(math.sqrt(len(vectors_ND)))), section.seed)


def _scores(
    records: Sequence[Record], section: SelectionSection, work: Path, find_model: FindModel
) -> tuple[Scores | None, Scores | None]:
    quality = difficulty = None
    if section.quality is not None:
        from align.curation.quality import quality_scorer

        quality = quality_scorer(section.quality, find_model, work).score(records)
    if section.difficulty is not None:
        from align.curation.difficulty import difficulty_scorer

        difficulty = difficulty_scorer(section.difficulty, find_model, work).score(records)
    return quality, difficulty


def _worth(quality: Scores | None, difficulty: Scores | None) -> Scores | None:
    """Quality × difficulty, each as its quantile in the set; one of them alone where there is but one."""
    if quality is not None and difficulty is not None:
        return scale.quality_times_difficulty(quality, difficulty)
    told = quality if quality is not None else difficulty
    return None if told is None else scale.quantiles(told)


def _as_array(worth: Scores | None) -> np.ndarray | None:
    """What rows are ordered by; those of which it cannot be told come last."""
    return None if worth is None else np.array([-1.0 if one is None else one for one in worth])
