"""How well do scores of quality and difficulty find rows that are bad on purpose?

    python examples/experiments/scores.py FILE … [--policy MODEL] [--reward MODEL] [--rows 60] [--share 0.3]
                                                 [--seeds 3] [--spoil answers]

FILE holds demonstrations or pairs. Of `--rows` of them, drawn anew for each seed, the share `--share` is spoilt: among
demonstrations the last replies change places, so that each answers another prompt (`--spoil words`: the words of each
change places within it); of pairs the chosen reply and the rejected one do, so that the worse one is chosen. Every
scorer then rates all rows and is asked which are spoilt:

    AUC         the share of pairs of a good and a spoilt row of which the spoilt one has the worse score, ties half;
                0.5 is chance; below it the 95 % interval of a bootstrap over rows
    top quarter the share of spoilt rows among the best quarter by that score; `--share` is chance

`reward` is the score of --reward; `ifd` the loss ratio under --policy, the lower the better here; `classifier` a small
classifier that learnt from as many other rows of the file, half of them spoilt in the same way, and is read as the
probability of "good"; `length` that of the (chosen) reply in characters. Last: how far the loss ratio and its rank
among rows of alike length go with the number of the reply's tokens (Spearman), over the rows that are not spoilt.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from align.curation.scale import is_high_quality, quantiles_at_length
from align.runtime.table import table
from data_formats.cleaning.texts import wanted_texts, whole_text
from data_formats.errors import DataError
from data_formats.reading import read
from data_formats.records import Comparison, Demonstration, Record

Scores = list[float | None]
DRAWS = 1000


def spoilt(rows: Sequence[Record], share: float, how: str, draw: random.Random) -> tuple[list[Record], list[bool]]:
    """The rows with some of them spoilt, and which."""
    chosen = sorted(draw.sample(range(len(rows)), max(2, round(share * len(rows)))))
    changed = list(rows)
    for at, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        row = rows[at]
        if isinstance(row, Comparison):
            changed[at] = row.swapped()
        else:
            turns, said = row.messages, rows[other if how == "answers" else at].messages[-1].content
            if how == "words":
                words = said.split()
                said = " ".join(draw.sample(words, len(words)))
            changed[at] = replace(row, messages=(*turns[:-1], replace(turns[-1], content=said)))
    return changed, [at in set(chosen) for at in range(len(rows))]


def auc(scores: Scores, is_bad: Sequence[bool]) -> float:
    """How often a bad row has a lower score than a good one; rows without a score are as bad as can be."""
    values = np.array([-np.inf if score is None else score for score in scores])
    bad = np.array(is_bad)
    if bad.all() or not bad.any():
        return float("nan")
    below = values[bad][:, None] < values[~bad][None]
    return float((below + 0.5 * (values[bad][:, None] == values[~bad][None])).mean())


def interval(scores: Scores, is_bad: Sequence[bool], seed: int) -> tuple[float, float]:
    """95 % of the AUCs of rows that are drawn again with replacement."""
    generator, count = np.random.default_rng(seed), len(scores)
    drawn = (generator.integers(count, size=count) for _ in range(DRAWS))
    found = [auc([scores[at] for at in rows], [is_bad[at] for at in rows]) for rows in drawn]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


class Raters:
    """Every scorer that there are models for: name -> scores, the higher the better."""

    def __init__(self, policy: str | None, reward: str | None, how: str):
        from align.curation.difficulty import difficulty_scorer
        from align.curation.quality import quality_scorer
        from align.recipe.scorer_sections import IFDDifficultySection, RewardQualitySection

        self.how = how
        self.ratios: list[tuple[float, float]] = []  # of rows that are not spoilt: tokens, ratio
        ifd = IFDDifficultySection(kind="ifd", model_from=policy or "none", length_free=False, max_length=512)
        self._ifd = difficulty_scorer(ifd, str) if policy else None
        scored = RewardQualitySection(kind="reward", model_from=reward or "none")
        self._reward = quality_scorer(scored, str) if reward else None

    def rate(self, rows: Sequence[Record], others: Sequence[Record], is_bad: Sequence[bool]) -> dict[str, Scores]:
        """Scores of the rows; the classifier learns from the others."""
        found: dict[str, Scores] = {"length": [float(len(wanted_texts(row)[-1])) for row in rows]}
        found["classifier"] = self._classified(rows, others)
        if self._reward is not None:
            found["reward"] = self._reward.score(rows)
        if self._ifd is not None:
            losses = self._ifd.losses(rows)
            found["ifd"] = [None if one is None else -one[0] / one[1] for one in losses]
            told = zip(losses, found["ifd"], is_bad, strict=True)
            self.ratios += [(one[2], -ratio) for one, ratio, bad in told if one is not None and not bad]
        return found

    def _classified(self, rows: Sequence[Record], others: Sequence[Record]) -> Scores:
        from align.curation.classified import ClassifierScore
        from align.textmodels.classifier import TextClassifier

        known, is_bad = spoilt(others, 0.5, self.how, random.Random(0))
        labels = ["bad" if bad else "good" for bad in is_bad]
        classifier = TextClassifier.fit([whole_text(row) for row in known], labels)
        return ClassifierScore(classifier, whole_text, "good").score(rows)


def rows_of(file: Path) -> list[Any]:
    """Pairs where the file holds some, else demonstrations that end with a reply."""
    try:
        return read(file, Comparison).records
    except DataError:
        return [row for row in read(file, Demonstration).records if row.messages[-1].role == "assistant"]


def measure(file: Path, raters: Raters, rows: int, share: float, seeds: int) -> dict[str, list[tuple[Any, ...]]]:
    """Per scorer and seed: AUC, its interval, and the share of spoilt rows in the top quarter."""
    known = [row for row in rows_of(file) if all(map(str.strip, wanted_texts(row)))]
    found: dict[str, list[tuple[Any, ...]]] = {}
    for seed in range(seeds):
        draw = random.Random(f"scores-{seed}")
        taken = draw.sample(known, min(2 * rows, len(known)))
        changed, is_bad = spoilt(taken[:rows], share, raters.how, draw)
        for name, scores in raters.rate(changed, taken[rows:], is_bad).items():
            top = [bad for bad, high in zip(is_bad, is_high_quality(scores), strict=True) if high]
            told = (auc(scores, is_bad), *interval(scores, is_bad, seed), sum(top) / max(len(top), 1))
            found.setdefault(name, []).append(told)
    return found


def show(file: Path, found: dict[str, list[tuple[Any, ...]]]) -> None:
    lines = []
    for name, seeds in found.items():
        mean, top = np.mean([one[0] for one in seeds]), np.mean([one[3] for one in seeds])
        each = ", ".join(f"{one[0]:.2f} [{one[1]:.2f}, {one[2]:.2f}]" for one in seeds)
        lines.append((file.name, name, f"{mean:.2f}", each, f"{top:.2f}"))
    print(table(("file", "scorer", "AUC", "each seed", "spoilt in the top quarter"), lines), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Print a table a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--policy", help="folder or hub id of a language model")
    parser.add_argument("--reward", help="folder or hub id of a reward model")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--spoil", choices=("answers", "words"), default="answers")
    args = parser.parse_args(argv)
    raters = Raters(args.policy, args.reward, args.spoil)
    for file in args.files:
        show(file, measure(file, raters, args.rows, args.share, args.seeds))
    if raters.ratios:
        tokens, ratios = zip(*raters.ratios, strict=True)
        free = quantiles_at_length(ratios, tokens)
        print(
            f"{len(ratios)} rows: the loss ratio goes with the reply's tokens by {spearman(ratios, tokens):.2f}, "
            f"its rank among rows of alike length by {spearman(free, tokens):.2f}"
        )


if __name__ == "__main__":
    main()
