"""People's rankings: k replies to a prompt, put in order by an annotator. No record to train on: each order is kept.

Four shapes of rows are known, in any file of rows (CSV, TSV, JSON, JSON Lines, Parquet); the first row says which.

    long     a row a reply: prompt, annotator, model and/or reply, and `rank` or `score`; the rows of a ranking may
             stand anywhere in the file
    wide     a row a ranking, with lists: prompt, annotator, `models` and/or `replies`, `ranks` or `scores` (one a
             reply, or an object by model), or `ranking`, the names from best to worst ("B > A = C", ["B", ["A", "C"]])
    columns  a row a ranking, with columns: prompt, annotator, `rank_NAME` or `score_NAME`, and where they are known
             `reply_NAME` and `model_NAME`; NAME is the model's, or a number or letter
    votes    a row a pair: prompt, annotator, `model_a`, `model_b` and/or two replies, and a verdict, as the arenas
             write them: model_a, model_b, tie, tie (bothbad)

Rank 1 is the best, equal ranks are ties; of scores the higher is better. A row without annotator, where the file names
annotators, a reply without rank and a verdict that is missing are left out and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_formats import ranking_shapes
from data_formats.comparisons import exchanges
from data_formats.context import with_system
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.files import raw_rows
from data_formats.formats import Dropped, Notes, encodable, keys_of, label, shown
from data_formats.turns import Turns, prompt_turns
from data_formats.verdicts import prompt_under, question_of, text_list

ANNOTATORS = (
    *("annotator", "annotator_id", "worker", "worker_id", "labeler", "labeler_id", "labeller", "rater", "rater_id"),
    *("evaluator", "evaluator_id", "judge", "judge_id", "user_id"),
)


@dataclass(frozen=True, slots=True)
class RankedReply:
    """One reply of a ranking.

    Attributes:
        model: whose it is; a number or letter, or nothing, where the file does not say.
        text: None where the file holds no replies.
        rank: the smaller, the better; comparable within a ranking alone.
    """

    model: str
    text: str | None
    rank: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """How one annotator ordered two or more replies to a prompt.

    Attributes:
        annotator: empty where the file names none.
        category: of the prompt, where the file has one.
    """

    prompt: Turns
    replies: tuple[RankedReply, ...]
    annotator: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class Rankings:
    """A file's rankings, in its order.

    Attributes:
        left_out: how many rows or replies were left out, by reason.
    """

    rankings: list[Ranking]
    left_out: dict[str, int]


def read_rankings(path: str | Path) -> Rankings:
    """The rankings of a file.

    Raises:
        MissingFileError: there is none.
        DataError: a shape that is not known, or a row that cannot be read; names file, row and field.
        EmptyDatasetError: nobody ranked two replies.
    """
    path, left_out = Path(path), Counter[str]()
    rows = list(raw_rows(path))
    named = {name for _, row in rows if isinstance(row, dict) for name in row}
    who = next((name for name in ANNOTATORS if name in named), None)
    found: dict[tuple[Any, ...], Ranking] = {}
    read: ranking_shapes.ReadRow | None = None
    for line, row in rows:
        try:
            if not isinstance(row, dict):
                raise DataError(f"expected an object, found {shown(row)}")
            row = encodable(row, Notes())
            read = read or ranking_shapes.shape_of(row)
            one = _ranking(row, read, who, left_out)
            key = (one.prompt, one.annotator) if read is ranking_shapes.long else (line,)
            found[key] = _joined(found[key], one) if key in found else one
        except Dropped as reason:
            left_out[str(reason)] += 1
        except DataError as error:
            raise DataError(error.problem, path=path, line=line, field=error.field) from None
        except RecursionError:
            raise DataError("nested too deeply to be read", path=path, line=line) from None
    rankings = [one for one in found.values() if len(one.replies) > 1]
    left_out["only one reply ranked"] += len(found) - len(rankings)
    if not rankings:
        why = ", ".join(f"{reason}: {count}" for reason, count in (+left_out).items())
        raise EmptyDatasetError(f"nobody ranked two replies to a prompt ({why or 'the file holds no rows'})", path=path)
    return Rankings(rankings, dict(+left_out))


def _ranking(row: dict[str, Any], read: ranking_shapes.ReadRow, who: str | None, left_out: Counter[str]) -> Ranking:
    """What one row says; in the long shape that is one reply.

    Raises:
        Dropped: it has no annotator or no verdict, or a prompt of no use.
    """
    annotator = "" if who is None else label(row, who, Notes())
    if who is not None and not annotator.strip():
        raise Dropped("no annotator")
    ranks = read(row)
    left_out["no rank"] += sum(rank is None for _, _, rank in ranks)
    replies = [RankedReply(model, text, rank) for model, text, rank in ranks if rank is not None]
    category = row.get("category")
    return Ranking(_prompt(row), _once(replies), annotator, category if isinstance(category, str) else "")


def _prompt(row: dict[str, Any]) -> Turns:
    if "conversation_a" in row:
        before, other = (exchanges(row, name, Notes())[:-1] for name in ("conversation_a", "conversation_b"))
        if before != other:
            raise Dropped("prompts differ")
        return prompt_turns(with_system(row, before, Notes()), Notes())
    name = question_of(row)
    if name is None:
        raise DataError(f"there is no prompt; found {keys_of(row)}", field="prompt")
    if "winner_model_a" in row:  # a list of one text a turn
        asked = text_list(row, name, Notes())
        if len(asked) != 1:
            raise Dropped("several turns, in which the replies differ")
        row = {**row, name: asked[0]}
    return prompt_under(row, name, Notes())


def _once(replies: Sequence[RankedReply]) -> tuple[RankedReply, ...]:
    """The replies, each once.

    Raises:
        DataError: one of them has two ranks.
    """
    known: dict[tuple[str, str | None], RankedReply] = {}
    for reply in replies:
        if known.setdefault((reply.model, reply.text), reply).rank != reply.rank:
            whose = f"the reply of {reply.model}" if reply.model else f"the reply {shown(reply.text)}"
            raise DataError(f"{whose} has two ranks in one ranking; name the annotators (`annotator`) and models")
    return tuple(known.values())


def _joined(before: Ranking, more: Ranking) -> Ranking:
    return replace(before, replies=_once((*before.replies, *more.replies)))
