"""Exports of annotation tools -> the plain rows that people annotated: Argilla (1 and 2) and Label Studio.

An Argilla record has `fields` and `responses`, a Label Studio task `data` and `annotations`. The row is its fields with
the answer to each question under the question's name: what most annotators said, the mean of ratings and ranks. It is
then read by shape as any other row. A verdict that names one of two replies is called `preference`; a ranking of
replies gives each its score. Suggestions and predictions are a model's, and are not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from data_formats.errors import DataError
from data_formats.formats import Dropped, shown
from data_formats.verdicts import QUESTIONS, names_one_of_two, pair_of

NOT_ANNOTATED = "not annotated"
_GIVEN_UP = ("discarded", "draft")
_VALUES = {"choices": "choices", "rating": "rating", "number": "number", "textarea": "text", "pairwise": "selected"}


class LeftOut(str):
    """In the place of a row of which nothing is read, and why."""


def plain_rows(rows: Iterator[tuple[int, Any]], path: str, *, annotated: bool) -> Iterator[tuple[int, Any]]:
    """The rows, those of an annotation tool as the plain rows that they wrap.

    Args:
        path: for errors.
        annotated: leave out what nobody annotated.

    Raises:
        DataError: an answer of a kind that is not read; names file, row and field.
    """
    for line, row in rows:
        unwrap = next((unwrap for fits, unwrap in _TOOLS if isinstance(row, dict) and fits(row)), None)
        if unwrap is None:
            yield line, row
            continue
        try:
            fields, answers = unwrap(row)
            if annotated and not answers:
                raise Dropped(NOT_ANNOTATED)
            yield line, _with_answers(fields, answers)
        except Dropped as reason:
            yield line, LeftOut(str(reason)) if annotated else fields
        except DataError as error:
            raise DataError(error.problem, path=path, line=line, field=error.field) from None


def _agreed(values: list[Any], field: str) -> Any:
    """What several annotators say together.

    Raises:
        Dropped: no answer is more frequent than the others.
        DataError: answers that cannot be compared.
    """
    if all(map(_is_number, values)):
        return fmean(values) if len(values) > 1 else values[0]
    if all(isinstance(value, str) for value in values):
        (first, most), *others = Counter(values).most_common(2)
        if others and others[0][1] == most:
            raise Dropped("annotators disagree")
        return first
    if all(_is_ranking(value) for value in values):
        ranks: dict[str, list[float]] = {}
        for one in (one for value in values for one in value):
            ranks.setdefault(one["value"], []).append(one["rank"])
        return [{"value": name, "rank": fmean(given)} for name, given in ranks.items()]
    if len(values) == 1 or all(value == values[0] for value in values):
        return values[0]
    raise DataError(f"several annotators' answers of this kind are not joined, found {shown(values)}", field=field)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_ranking(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and isinstance(one.get("value"), str) for one in value)
        and all(_is_number(one.get("rank")) for one in value)
    )


def _with_answers(fields: dict[str, Any], answers: dict[str, list[Any]]) -> dict[str, Any]:
    """One plain row."""
    row = dict(fields)
    for name, values in answers.items():
        value = _agreed(values, name)
        pair = pair_of(fields)
        if _is_ranking(value):
            row |= _ranked(fields, value, name)
            for one in value:
                row.pop(one["value"], None)
        elif isinstance(value, str) and pair is not None and names_one_of_two(value, pair):
            row["preference"] = value
        else:
            row[name] = value
    return row


def _ranked(fields: dict[str, Any], ranking: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Rank 1 is the best, so that the score is -rank."""
    missing = [one["value"] for one in ranking if not isinstance(fields.get(one["value"]), str)]
    question = next((field for field in QUESTIONS if field in fields), None)
    if missing or question is None:
        what = f"there is no field {missing[0]!r}" if missing else "there is no field with the prompt"
        raise DataError(f"replies are ranked, and {what}; the fields are {', '.join(fields)}", field=name)
    replies = [{"content": fields[one["value"]], "score": -one["rank"]} for one in ranking]
    return {"prompt": fields[question], "replies": replies}


def _is_argilla(row: dict[str, Any]) -> bool:
    return isinstance(row.get("fields"), dict) and isinstance(row.get("responses"), dict | list)


def _argilla(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Responses by question, {question: [{value, status}]} (2), or by person, [{values: {question: {value}}}] (1)."""
    answers: dict[str, list[Any]] = {}
    if isinstance(row["responses"], dict):
        said = [(name, one) for name, given in row["responses"].items() for one in _objects(given, f"responses.{name}")]
    else:
        said = [
            (name, {"status": person.get("status"), **(one if isinstance(one, dict) else {"value": one})})
            for person in _objects(row["responses"], "responses")
            for name, one in (person["values"] if isinstance(person.get("values"), dict) else {}).items()
        ]
    for name, one in said:
        if one.get("value") is not None and str(one.get("status") or "submitted").lower() not in _GIVEN_UP:
            answers.setdefault(name, []).append(one["value"])
    if str(row.get("status")).lower() == "discarded":
        answers = {}
    return row["fields"], answers


def _is_argilla_table(row: dict[str, Any]) -> bool:
    return any(f"{name}-suggestion" in row for name in row) or any(str(name).endswith(".responses") for name in row)


def _argilla_table(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Records as a table: `question`: [{value, status}] beside `question-suggestion` (1), `question.responses` (2)."""
    fields, answers = {}, {}
    for name, value in row.items():
        if name.endswith(".responses"):
            if not isinstance(value, list | None):
                raise DataError(f"expected a list of answers, found {shown(value)}", field=name)
            statuses = row.get(f"{name}.status")
            statuses = statuses if isinstance(statuses, list) else ["submitted"] * len(value or [])
            said = zip(value or [], statuses, strict=False)
            given = [one for one, status in said if one is not None and str(status).lower() not in _GIVEN_UP]
            answers |= {name.removesuffix(".responses"): given} if given else {}
        elif f"{name}-suggestion" in row:
            said = [one for one in _objects(value or [], name) if one.get("value") is not None]
            given = [one["value"] for one in said if str(one.get("status") or "submitted").lower() not in _GIVEN_UP]
            answers |= {name: given} if given else {}
        elif not any(mark in name for mark in ("-suggestion", ".suggestion", ".responses.")):
            fields[name] = value
    return fields, answers


def _is_label_studio(row: dict[str, Any]) -> bool:
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def _label_studio(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    answers: dict[str, list[Any]] = {}
    for at, annotation in enumerate(_objects(row["annotations"], "annotations")):
        if annotation.get("was_cancelled"):
            continue
        for result in _objects(annotation.get("result") or [], f"annotations[{at}].result"):
            kind, value = str(result.get("type")), result.get("value")
            said = value.get(_VALUES.get(kind)) if isinstance(value, dict) else None
            if said is None:
                known = ", ".join(_VALUES)
                problem = f"results of type {known} are read, found {shown(kind)}; export without this label"
                raise DataError(problem, field=f"annotations[{at}].result")
            said = said[0] if isinstance(said, list) and len(said) == 1 else said
            answers.setdefault("preference" if kind == "pairwise" else str(result.get("from_name")), []).append(said)
    return row["data"], answers


def _is_label_studio_min(row: dict[str, Any]) -> bool:
    return "annotation_id" in row and "lead_time" in row


def _label_studio_min(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """JSON-MIN: the fields and {from_name: value} in one object."""
    fields, answers = dict(row), {}
    for name, value in row.items():
        one = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(one, dict) and isinstance(one.get("selected"), str):
            answers["preference"] = [one["selected"]]
            del fields[name]
    for name in ("annotation_id", "lead_time", "annotator", "id", "created_at", "updated_at"):
        fields.pop(name, None)
    pair = pair_of(fields)
    verdicts = [name for name in fields if name not in (*QUESTIONS, *(pair or ())) and isinstance(fields[name], str)]
    for name in verdicts if pair and not answers else ():
        if names_one_of_two(fields[name], pair):
            answers[name] = [fields.pop(name)]
    return fields, answers or {}


def _objects(value: Any, field: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise DataError(f"expected a list of objects, found {shown(value)}", field=field)
    return value


_TOOLS = (
    (_is_argilla, _argilla),
    (_is_argilla_table, _argilla_table),
    (_is_label_studio, _label_studio),
    (_is_label_studio_min, _label_studio_min),
)
