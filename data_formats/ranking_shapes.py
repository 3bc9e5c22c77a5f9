"""Shapes of rows in which people put replies in order -> (model, text, rank) a reply; see `data_formats.rankings`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_formats.comparisons import exchanges
from data_formats.errors import DataError
from data_formats.formats import Dropped, Notes, as_text, flag, keys_of, label, optional_number, shown
from data_formats.verdicts import STRENGTHS, VERDICTS, better_of, pair_of, strength_of, text_list

Row = dict[str, Any]
RankedTexts = list[tuple[str, str | None, float | None]]  # rank None: there is none
ReadRow = Callable[[Row], RankedTexts]

MODELS = ("model", "model_name", "policy", "generator")
TEXTS = ("reply", "response", "completion", "output", "generation", "answer", "candidate", "text", "content")
LISTS = ("replies", "responses", "completions", "outputs", "generations", "answers", "candidates")
RANKS, SCORES = ("rank", "ranks", "position", "ranking"), ("score", "scores", "rating", "ratings")
_SIGNS = ("_", "-", ".", " ", "")
_COLUMN = re.compile(r"(rank|score|rating)(?:[_\-. ](.+)|(\d+|[A-Z]))")
_MODEL_PAIRS = (("model_a", "model_b"), ("model_1", "model_2"), ("model_0", "model_1"))
_FLAGS = "winner_model_a"  # with winner_model_b, as the arena's 55k votes are written


def shape_of(row: Row) -> ReadRow:
    """What reads rows like this one.

    Raises:
        DataError: nothing does.
    """
    if _verdict_field(row) and _sides(row):
        return votes
    if any(isinstance(row.get(name), list | dict) for name in (*RANKS, *SCORES, *LISTS)) or _is_order(row):
        return wide
    if len(_columns(row)) > 1:
        return by_columns
    if _first(row, (*RANKS, *SCORES)) and _first(row, (*MODELS, *TEXTS)):
        return long
    raise DataError(
        "no ranking: expected a `rank` or `score` beside a `model` or `reply`, `ranks` beside `models` or `replies`, "
        f"`rank_NAME` columns, or `model_a`, `model_b` and `winner`; found {keys_of(row)}"
    )


def _first(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _number(row: Row, name: str) -> float | None:
    """The number under a name; NaN, which pandas writes where there is nothing, is none."""
    value = row.get(name)
    if str(value).strip().lower() in ("nan", "na", "n/a", "null", "none"):
        return None
    return optional_number(row, name)


def _rank(row: Row, name: str | None) -> float | None:
    """The number under a name as a rank; a score is one with its sign changed."""
    number = None if name is None else _number(row, name)
    is_rank = name is not None and (name in RANKS or name.startswith("rank"))
    return number if number is None or is_rank else 0.0 - number


def _text(row: Row, names: Sequence[str] = TEXTS) -> str | None:
    name = _first(row, names)
    return None if name is None or row[name] is None else as_text(row[name], name, Notes())


def _model(row: Row, names: Sequence[str] = MODELS) -> str:
    name = _first(row, names)
    return "" if name is None else label(row, name, Notes())


def long(row: Row) -> RankedTexts:
    """A row a reply: its rank or score, and model or text."""
    model, text = _model(row), _text(row)
    if not model and text is None:
        raise DataError(f"neither model nor reply is named; found {keys_of(row)}", field="model")
    return [(model, text, _rank(row, _first(row, (*RANKS, *SCORES))))]


def _columns(row: Row) -> list[tuple[str, str]]:
    """The columns of ranks, each with the name behind it; those of scores where there is no rank."""
    found = [(name, match[1], match[2] or match[3]) for name in row if (match := _COLUMN.fullmatch(name))]
    kind = next((kind for kind in ("rank", "score", "rating") if any(one[1] == kind for one in found)), None)
    return [(name, end) for name, one, end in found if one == kind]


def by_columns(row: Row) -> RankedTexts:
    """`rank_NAME` or `score_NAME`, with `reply_NAME` and `model_NAME` where they are known."""
    ranks = []
    for name, end in _columns(row):
        text = _text(row, [f"{text}{sign}{end}" for text in TEXTS for sign in _SIGNS])
        model = _model(row, [f"model{sign}{end}" for sign in _SIGNS])
        ranks.append((model or end, text, _rank(row, name)))
    return ranks


def wide(row: Row) -> RankedTexts:
    """Lists of models, replies, and ranks or scores; or replies that are objects with these."""
    replies = _listed(row)
    if row.get("ranking") is not None and not isinstance(row["ranking"], Mapping):
        return _ordered(row["ranking"], replies)
    name = next((name for name in (*RANKS, *SCORES) if row.get(name) is not None), None)
    if name is None:
        return [(*reply, rank) for reply, rank in zip(replies, _own_ranks(row), strict=True)]
    given = row[name]
    if isinstance(given, dict):
        replies = replies or [(model, None) for model in given]
        given = [given.get(model) for model, _ in replies]
    if not isinstance(given, list) or len(given) != len(replies):
        raise DataError(f"expected {len(replies)} numbers, one a reply, found {shown(row[name])}", field=name)
    return [(*reply, _rank({name: value}, name)) for reply, value in zip(replies, given, strict=True)]


def _listed(row: Row) -> list[tuple[str, str | None]]:
    """The models and texts of a row's lists; a reply without a model is called by its number, from 1."""
    name, models = _first(row, LISTS), _first(row, ("models", "model_names"))
    given = None if name is None else row[name]
    if isinstance(given, dict):
        return [(model, as_text(text, f"{name}.{model}", Notes())) for model, text in given.items()]
    if models is not None and not isinstance(row[models], list):
        raise DataError(f"expected a list of names, found {shown(row[models])}", field=models)
    names = None if models is None else [label({models: model}, models, Notes()) for model in row[models]]
    if given is None:
        return [(model, None) for model in names or ()]
    if not isinstance(given, list) or (names is not None and len(names) != len(given)):
        expected = "a list of replies" if names is None else f"{len(names)} replies, as there are models"
        raise DataError(f"expected {expected}, found {shown(given)}", field=name)
    found = []
    for at, one in enumerate(given):
        is_object = isinstance(one, dict)
        text = _text(one) if is_object else as_text(one, f"{name}[{at}]", Notes())
        found.append(((_model(one) if is_object else "") or (names[at] if names else str(at + 1)), text))
    return found


def _own_ranks(row: Row) -> list[float | None]:
    """Those of replies that are objects."""
    name = _first(row, LISTS)
    if name is None or not all(isinstance(one, dict) for one in row[name]):
        raise DataError(f"there are no ranks and no scores; found {keys_of(row)}", field="ranks")
    return [_rank(one, _first(one, (*RANKS, *SCORES))) for one in row[name]]


def _is_order(row: Row) -> bool:
    return isinstance(row.get("ranking"), str) and re.search("[>=]", row["ranking"]) is not None


def _ordered(ranking: Any, replies: list[tuple[str, str | None]]) -> RankedTexts:
    """The ranks of an order in names, from best to worst; letters stand for replies that have other names."""
    places = _places(ranking)
    names = [model for model, _ in replies] or list(places)
    if places.keys() - set(names) and all(len(name) == 1 and name.isascii() and name.isalpha() for name in places):
        at = {name: ord(name.upper()) - ord("A") for name in places}
        places = {names[at[name]] if at[name] < len(names) else name: place for name, place in places.items()}
    if unknown := sorted(places.keys() - set(names)):
        raise DataError(f"{unknown[0]!r} is none of {', '.join(names)}", field="ranking")
    texts = dict(replies)
    return [(name, texts.get(name), places.get(name)) for name in names]


def _places(ranking: Any) -> dict[str, float]:
    """The place of each name: of "B > A = C", or of a list, where a list within is a tie."""
    if isinstance(ranking, str):
        ranking = [[name.strip() for name in place.split("=")] for place in ranking.split(">")]
    if not isinstance(ranking, list):
        raise DataError(
            f"expected names from best to worst, as in 'B > A = C', found {shown(ranking)}", field="ranking"
        )
    places: dict[str, float] = {}
    for at, place in enumerate(ranking, start=1):
        for name in place if isinstance(place, list) else [place]:
            if not isinstance(name, str) or not name:
                problem = "may be ranks or an order; call ranks `ranks`, one a reply, or write the order in names"
                raise DataError(f"{shown(ranking)} {problem}", field="ranking")
            if name in places:
                raise DataError(f"{name!r} stands twice", field="ranking")
            places[name] = float(at)
    return places


def _sides(row: Row) -> tuple[str, str] | None:
    """The fields that hold two conversations or replies or, where there are none, two models."""
    if {"conversation_a", "conversation_b"} <= row.keys():
        return ("conversation_a", "conversation_b")
    return pair_of(row) or next((pair for pair in _MODEL_PAIRS if row.keys() >= set(pair)), None)


def _verdict_field(row: Row) -> str | None:
    return _FLAGS if _FLAGS in row else _first(row, VERDICTS)


def votes(row: Row) -> RankedTexts:
    """Two models or replies, and which of them is better."""
    sides, name = _sides(row), _verdict_field(row)
    if sides is None or name is None:
        raise DataError(f"expected two replies or two models, and a verdict; found {keys_of(row)}", field=name)
    ends = [side[-1] for side in sides]
    models = [_model(row, (f"model_{end}", f"model_{end.lower()}")) or end for end in ends]
    return list(zip(models, [_said(row, side) for side in sides], _two_ranks(row, name, sides, models), strict=True))


def _said(row: Row, side: str) -> str | None:
    if side.startswith("model_"):
        return None
    if side.startswith("conversation_"):
        return exchanges(row, side, Notes())[-1].content
    if _FLAGS in row:
        return (text_list(row, side, Notes()) or [""])[-1]
    return _text(row, (side,))


def _two_ranks(row: Row, name: str, sides: tuple[str, str], models: list[str]) -> tuple[float, float]:
    """The ranks of a verdict, equal ones of any tie.

    Raises:
        Dropped: there is no verdict.
    """
    try:
        if name == _FLAGS:
            wins = [flag(row, f"winner_model_{end}") for end in "ab"]
            if wins[0] == wins[1]:
                raise Dropped("tie")
            better = wins.index(True)
        elif name in STRENGTHS:
            better, _ = strength_of(row[name], name)
        elif isinstance(row[name], str) and models.count(row[name]) == 1:
            better = models.index(row[name])
        elif isinstance(row[name], float) and math.isnan(row[name]):
            raise Dropped("no verdict")
        else:
            better = better_of(row[name], name, sides)
    except Dropped as reason:
        if str(reason) != "tie":
            raise
        return (1.0, 1.0)
    return (1.0, 2.0) if better == 0 else (2.0, 1.0)
