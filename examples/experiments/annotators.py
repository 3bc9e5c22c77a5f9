"""Annotators of the embedded world who are played: they know the gold score and err as often as they are told to.

    python examples/experiments/annotators.py RUN ITEMS [--annotator NAME=ERROR[,POSITION] …] [--overlap SHARE]

RUN is the output folder of a finished `align quickstart`, ITEMS what `align collect` wrote about its prompts (all, or
those chosen of them). Judgments are added to `judgments.jsonl` beside it, as `align annotate` keeps them; what an
annotator has judged is not judged again. ERROR and POSITION are percentages.

Between two replies an annotator chooses the one that was shown first without looking in a share of 2 POSITION of the
cases; in the others looks, and then takes the worse one in a share of ERROR. So `wrong` of the choices are wrong, and
the reply shown first is chosen by POSITION more often than half of the time. Replies of equal gold score are a tie.
The strength is the difference of gold scores: up to 0.25 negligibly, 0.5 slightly, 0.75 better, above significantly.
Chance follows from seed, name, question and replies, so that the same is said of the same, whenever and wherever it is
asked: in a file of judgments, and as a recipe's `judge` (`write_judge`).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import uuid
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

from align.feedback.annotation import Annotation, shown_order
from align.feedback.item_files import read_items
from align.feedback.items import FeedbackItem
from align.feedback.judgments import STRENGTHS, load_judgments
from align.runs.launch import guarded
from align.runtime.errors import MissingFileError
from align.runtime.files import append_json_lines, write_text
from align.runtime.json_files import read_object
from align.tinyworld.gold import GoldScore
from align.tinyworld.world import World

CUTS = (0.25, 0.5, 0.75)  # differences of gold scores up to which a reply is negligibly, slightly, just better
FIRST, SECOND, TIE = "first", "second", "tie"


@dataclass(frozen=True, slots=True)
class Annotator:
    """One who is played.

    Attributes:
        error: share of wrong choices among those that were looked at.
        position: by how much the share of choices for the reply shown first exceeds one half, all else being equal.
        seed: two of the same name and seed say the same.
    """

    name: str
    error: float = 0.1
    position: float = 0.0
    seed: int = 0

    @property
    def wrong(self) -> float:
        """The share of wrong choices, where the better reply stands first as often as not."""
        return (1 - 2 * self.position) * self.error + self.position

    def choice(self, question: str, first: str, second: str, better_by: float) -> str:
        """`first`, `second` or `tie`.

        Args:
            better_by: the gold score of the first reply above that of the second.
        """
        if better_by == 0:
            return TIE
        rng = random.Random(json.dumps([self.seed, self.name, question, *sorted((first, second))]))
        blind, wrong = rng.random() < 2 * self.position, rng.random() < self.error
        return FIRST if blind or (better_by > 0) != wrong else SECOND


def gold_of(run: Path) -> GoldScore:
    """The gold score of the world that a run was made in. Raises MissingFileError."""
    file = run / "world" / "world.json"
    world = read_object(file, "run `align quickstart` anew")
    if world is None:
        raise MissingFileError(f"{file} does not exist: name the folder of a finished `align quickstart`")
    return GoldScore(World(world["seed"]))


def annotate(
    items: Sequence[FeedbackItem], path: Path, annotators: Sequence[Annotator], gold: GoldScore, *, overlap: float = 1.0
) -> int:
    """Add what the annotators say of those items that they have not judged; how many judgments that is.

    Args:
        path: the file of judgments.
        overlap: share of the items that everybody judges; of the others each is judged by one.
    """
    done = {(one.item, one.annotator) for one in load_judgments(path)}
    shared = Annotation(items, path, overlap).overlap
    rows = []
    for item in items:
        alone = random.Random(f"{annotators[0].seed}/{item.id}").choice(annotators)
        for who in annotators if item.id in shared else [alone]:
            if (item.id, who.name) not in done:
                rows.append(judgment(who, item, gold))
    append_json_lines(path, rows)
    return len(rows)


def judgment(who: Annotator, item: FeedbackItem, gold: GoldScore) -> dict[str, Any]:
    """The row of what one annotator says of one item: the order that the replies' wins and ties in pairs come to."""
    question, shown = item.prompt[-1].content, shown_order(item, who.name)
    texts = {one.id: one.reply for one in item.replies}
    worth = {name: gold.judge(question, text).score for name, text in texts.items()}
    points = dict.fromkeys(shown, 0.0)
    for first, second in combinations(shown, 2):
        said = who.choice(question, texts[first], texts[second], worth[first] - worth[second])
        points[first] += {FIRST: 1.0, TIE: 0.5, SECOND: 0.0}[said]
        points[second] += {FIRST: 0.0, TIE: 0.5, SECOND: 1.0}[said]
    order = sorted(shown, key=lambda name: -points[name])
    ranks = [list(own) for _, own in groupby(order, key=points.__getitem__)]
    gap = abs(worth[ranks[0][0]] - worth[ranks[1][0]]) if len(ranks) > 1 else None
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{who.seed}/{who.name}/{item.id}")),
        "item": item.id,
        "annotator": who.name,
        "shown": list(shown),
        "ranking": ranks,
        "strength": None if gap is None else STRENGTHS[bisect_left(CUTS, gap)],
    }


def as_function(who: Annotator, world: int) -> Callable[..., list[str]]:
    """The annotator as a judge's function, of the world of this seed."""
    gold = GoldScore(World(world))

    def judge(prompts: Sequence[Any], first: Sequence[str], second: Sequence[str]) -> list[str]:
        said = []
        for prompt, *texts in zip(prompts, first, second, strict=True):
            question = prompt[-1]["content"]
            one, other = (gold.judge(question, text).score for text in texts)
            said.append(who.choice(question, *texts, one - other))
        return said

    return judge


def write_judge(file: Path, who: Annotator, world: int) -> str:
    """Write a Python file in which the annotator is a judge; the word by which recipes and `align judge` name it."""
    words = f'"""An annotator who is played, of the embedded world {world}."""\n\nimport sys\n\n'
    words += f"sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
    words += "from examples.experiments.annotators import Annotator, as_function\n\n"
    write_text(file, f"{words}people = as_function({who!r}, {world})\n")
    return f"{file}:people"


def annotator_of(word: str) -> Annotator:
    """NAME=ERROR[,POSITION], percentages."""
    name, _, numbers = word.partition("=")
    return Annotator(name, *(float(number) / 100 for number in numbers.split(",") if number))


def main(argv: Sequence[str] | None = None) -> int:
    """Annotate; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("items", metavar="ITEMS", type=Path)
    parser.add_argument("--annotator", dest="annotators", action="append", type=annotator_of, help="default ann=10")
    parser.add_argument("--overlap", type=float, default=0.2, help="share that everybody judges (default %(default)s)")
    parser.add_argument("--out", type=Path, help="default: judgments.jsonl beside ITEMS")
    args = parser.parse_args(argv)
    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        out = args.out or args.items.with_name("judgments.jsonl")
        annotators = args.annotators or [Annotator("ann")]
        number = annotate(read_items(args.items), out, annotators, gold_of(args.run), overlap=args.overlap)
        print(f"{out}: {number} judgments more")
    return ending.code


if __name__ == "__main__":
    sys.exit(main())
