"""Models' replies to the same prompts, two models at a time, before a judge.

A *row* is a pair of replies with what was said of it: `first` and `second`, the models; `prompt` and `sample`, which
prompt and which of its replies, from 0; `category`; `longer`, by how many characters the second reply is; `replies`,
which tells whether they are still the same; `judgments`. Rows are added to a file as they are judged, so nothing is
asked twice: neither after a kill nor when another model comes in. What came to no verdict is asked again: that may have
been a failure. A judge that keeps its own answers, and counts them (`usage`), gets all pairs: it asks what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from align.data.replies import PromptedReply
from align.evaluation.ranking import Unit, agreement, ranking
from align.evaluation.scoring import samples_for
from align.evaluation.wins import ComparedPair, win_rates
from align.runtime import files
from align.runtime.json_files import objects, read_text
from data_formats.records import Prompt
from reward.judges.protocol import Judge, Judgment, ReplyPair
from reward.judges.rankings import RankingsJudge
from reward.protocol import prompt_columns

AT_ONCE = 256  # prompts whose pairs a judge gets in one call
Row = dict[str, Any]
Replies = Mapping[str, Sequence[Sequence[str]]]  # model -> prompt -> its replies, as many each


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge said of all pairs.

    Attributes:
        name: in figures and files.
        judged_by: the words that follow "judged by".
        usage: what asking cost, for a judge that is paid for.
    """

    name: str
    judged_by: str
    rows: list[Row]
    usage: Mapping[str, int] = field(default_factory=dict)


def judged_rows(
    judge: Judge,
    prompts: Sequence[Prompt],
    replies: Replies,
    kept: Path,
    told: Callable[[int], None] = lambda done: None,
) -> list[Row]:
    """The rows of all pairs of models, the earlier one first, each reply beside the other's of the same number.

    Args:
        kept: the file of rows; of the same prompts and judge.
        told: is called with the number of prompts that are done.

    Raises:
        RewardError: the judge failed; what was judged before is kept.
    """
    there, _ = objects(read_text(kept))
    known = {_where(row): row for row in there}
    files.write_json_lines(kept, known.values())  # without half of a line, where a kill left one
    found, counts = [], hasattr(judge, "usage")
    for start in range(0, len(prompts), AT_ONCE):
        some = _pairs(judge, prompts, replies, range(start, min(start + AT_ONCE, len(prompts))))
        rows = [known.get(_where(row), {}) for row, _ in some]
        asked = [at for at, (row, _) in enumerate(some) if counts or not _is_judged(rows[at], row["replies"])]
        if asked:
            told_of = judge.compare([some[at][1] for at in asked])
            for at, judgments in zip(asked, told_of, strict=True):
                rows[at] = some[at][0] | {"judgments": [_as_object(one) for one in judgments]}
            files.append_json_lines(kept, [rows[at] for at in asked])
            known |= {_where(rows[at]): rows[at] for at in asked}
        found += rows
        told(start + len(prompts[start : start + AT_ONCE]))
    files.write_json_lines(kept, known.values())  # a pair that was asked again stands there once
    return found


def ranked_rows(judges: Sequence[RankingsJudge], models: Sequence[str]) -> list[list[Row]]:
    """The rows of people's rankings alone, of each judge every pair of these models that somebody ranked; a prompt has
    the same number in all of them."""
    prompts: dict[Any, int] = {}
    found = []
    for judge in judges:
        rows, times = [], Counter[tuple[Any, ...]]()
        for first, second in combinations(models, 2):
            pairs = judge.pairs(first, second)
            for pair, judgments in zip(pairs, judge.compare(pairs), strict=True):
                at = prompts.setdefault(pair.first.prompt, len(prompts))
                times[first, second, at] += 1
                row = _row(pair, at, times[first, second, at] - 1)
                rows.append(row | {"judgments": [_as_object(one) for one in judgments]})
        found.append(rows)
    return found


def matches(rows: Sequence[Row]) -> dict[tuple[str, str], list[ComparedPair]]:
    """What was judged between each two models."""
    found: dict[tuple[str, str], list[ComparedPair]] = defaultdict(list)
    for row in rows:
        winners = [one["winner"] for one in row["judgments"]]
        found[row["first"], row["second"]].append(ComparedPair(row["prompt"], winners, row["category"], row["longer"]))
    return dict(found)


def verdicts(rows: Sequence[Row], judge: str) -> dict[tuple[str, str], dict[Unit, str]]:
    """The verdicts of a judge as `align.evaluation.ranking.agreement` takes them."""
    found: dict[tuple[str, str], dict[Unit, str]] = defaultdict(dict)
    for row in rows:
        for one in row["judgments"]:
            if one["winner"] is not None:
                found[judge, one.get("by", "")][row["prompt"], *_where(row), row["replies"]] = one["winner"]
    return dict(found)


def result(judged: Sequence[Judged], *, seed: int = 0) -> dict[str, Any]:
    """`judges`, of each by name `judged_by`, `matches` (`align.evaluation.wins.win_rates` of every two models),
    `ranking` where there are more than two, and `usage`; and `agreement` of all who judged, None for one alone."""
    judges: dict[str, Any] = {}
    said: dict[tuple[str, str], dict[Unit, str]] = {}
    for one in judged:
        between = matches(one.rows)
        rates = [win_rates(pairs, judged_by=one.judged_by, first=a, second=b) for (a, b), pairs in between.items()]
        models = {name for match in between for name in match}
        ranked = ranking(between, seed=seed) if len(models) > 2 else []
        judges[one.name] = {"judged_by": one.judged_by, "matches": rates, "ranking": ranked, "usage": one.usage}
        said |= verdicts(one.rows, one.name)
    return {"judges": judges, "agreement": agreement(said, seed=seed) if len(said) > 1 else None}


def _pairs(judge: Judge, prompts: Sequence[Prompt], replies: Replies, some: range) -> list[tuple[Row, ReplyPair]]:
    """Each pair with its row without judgments; a reply is the same `Sample` in all of its pairs."""
    names, reward = list(replies), getattr(judge, "reward", None)
    columns = {at: prompt_columns(prompts[at]) for at in some}
    given = [
        PromptedReply(prompts[at].messages, text, prompts[at].tools, columns[at])
        for name in names
        for at in some
        for text in replies[name][at]
    ]
    samples = iter(samples_for(reward, given))
    of_model = {name: {at: [next(samples) for _ in replies[name][at]] for at in some} for name in names}
    return [
        (_row(pair, at, number), pair)
        for at in some
        for first, second in combinations(names, 2)
        for number, sides in enumerate(zip(of_model[first][at], of_model[second][at], strict=True))
        for pair in (ReplyPair(*sides, models=(first, second)),)
    ]


def _row(pair: ReplyPair, prompt: int, number: int) -> Row:
    first, second = pair.first.completion, pair.second.completion
    return {
        "first": pair.models[0],
        "second": pair.models[1],
        "prompt": prompt,
        "sample": number,
        "category": (pair.first.columns or {}).get("category") or "",
        "longer": len(second) - len(first) if first or second else None,
        "replies": hashlib.sha256(json.dumps([first, second]).encode()).hexdigest()[:16],
    }


def _where(row: Row) -> tuple[Any, ...]:
    return row["first"], row["second"], row["prompt"], row["sample"]


def _is_judged(row: Row, replies: str) -> bool:
    """Whether a row that was kept is of these replies; one that came to no verdict may come to one now."""
    return row.get("replies") == replies and all(one["winner"] is not None for one in row["judgments"])


def _as_object(judgment: Judgment) -> Row:
    """The judgment as a JSON object, without what it does not have."""
    found: Row = {"winner": judgment.winner}
    if judgment.by:
        found["by"] = judgment.by
    if judgment.scores is not None:
        found["scores"] = list(judgment.scores)
    return found | ({"note": judgment.note} if judgment.note else {})
