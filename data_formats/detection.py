"""Which format a row has: all formats by kind of record, the most specific one, and those that hold no record.

With `format="auto"` the first row decides: of the formats whose fields it has, the one that needs the most fields wins;
two that need equally many are refused, and the recipe must name one. `docs/formats.md` lists what each needs; those
that need the same are told apart by their values (`Format.fits`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from data_formats import (
    benchmarks,
    comparisons,
    demonstrations,
    documents,
    moss,
    programs,
    prompts,
    rated,
    scored,
    trees,
    verdicts,
)
from data_formats.context import SYSTEM_FIELDS
from data_formats.errors import DataError
from data_formats.fields import NOTHING, Fields, present
from data_formats.formats import Format, Notes, keys_of
from data_formats.loss import LOSS_FIELDS
from data_formats.neighbours import Neighbours
from data_formats.records import Comparison, Demonstration, Prompt, Record, Scored
from data_formats.tools import CALL_FIELDS, TOOL_FIELDS
from data_formats.turns import REASONING_FIELDS

FORMATS: tuple[Format, ...] = (
    *demonstrations.FORMATS,
    *comparisons.FORMATS,
    *scored.FORMATS,
    *verdicts.FORMATS,
    *benchmarks.FORMATS,
    *rated.FORMATS,
    *trees.FORMATS,
    *moss.FORMATS,
    *programs.FORMATS,
    *prompts.FORMATS,
    *documents.FORMATS,
)
_CONVERSATIONS = (Demonstration, Comparison, Scored, Prompt)
_LEARNT = (Demonstration, Comparison, Scored)  # a prompt's further fields are columns for its reward
# Fields that no format of these kinds reads unless it needs them.
_UNSUPPORTED = {
    **{name: (name, _CONVERSATIONS) for name in ("images", "videos", "audios")},
    "label": ("unpaired labelled replies", (Demonstration, Comparison)),
    "rejected": ("ranked replies", (Demonstration,)),
}
# Fields whose meaning is known, with the kinds of record for which they matter: a format that leaves one unread refuses
# the row, instead of losing what it says.
_MEANT: dict[str, tuple[type[Record], ...]] = {
    **dict.fromkeys((*SYSTEM_FIELDS, *TOOL_FIELDS, *CALL_FIELDS, "history", "context"), _CONVERSATIONS),
    **dict.fromkeys((*LOSS_FIELDS, *REASONING_FIELDS), _LEARNT),
}
# Shapes that hold no record of any kind: the fields they have, one they would need, and what to do.
_REFUSED = (
    ({"task_id", "completion"}, "prompt", "completions without their prompts; join them with their problems first"),
    ({"problem", "content"}, "prompt", "rows wrapped in 'content'; take them out and read them as what they are"),
)


def format_names(kind: type[Record]) -> list[str]:
    """The formats known for a kind of record, as a recipe names them."""
    return [known.name for known in FORMATS if known.kind is kind]


def detect(row: Any, kind: type[Record]) -> Format:
    """The most specific format whose fields the row has.

    Raises:
        DataError: none, or two that are equally specific.
    """
    keys, kind_name = keys_of(row), kind.__name__.lower()
    for has, lacks, what in _REFUSED if isinstance(row, dict) else ():
        if has <= row.keys() and lacks not in row:
            raise DataError(f"these are {what}; keys seen: {keys}")
    fitting = [known for known in FORMATS if known.kind is kind and known.matches(row)]
    if not fitting:
        known = ", ".join(format_names(kind))
        raise DataError(f"no {kind_name} format has this shape; keys seen: {keys}; known formats: {known}")
    most = max(len(candidate.needs) for candidate in fitting)
    best = [candidate for candidate in fitting if len(candidate.needs) == most]
    if len(best) > 1:
        names = " or ".join(candidate.name for candidate in best)
        raise DataError(f"the row could be {names}; say which with 'format'; keys seen: {keys}")
    return best[0]


def named(name: str, kind: type[Record]) -> Format:
    for known in FORMATS:
        if known.kind is kind and known.name == name:
            return known
    names = ", ".join(["auto", *format_names(kind)])
    raise DataError(f"unknown {kind.__name__.lower()} format {name!r}; known are {names}", field="format")


def parse(row: Any, chosen: Format, notes: Notes) -> tuple[Any, ...]:
    """The records of one row (of rows that belong together, where the format says so)."""
    if isinstance(row, Neighbours):
        row.each(partial(_check_shape, chosen=chosen))
    else:
        _check_shape(row, chosen)
    made = chosen.parse(row, notes)
    return made if isinstance(made, tuple) else (made,)


def _check_shape(row: Any, chosen: Format) -> None:
    """Nothing, where a row has the format's fields and none that would be lost.

    Raises:
        DataError: it has not.
    """
    if not (chosen.needs <= row.keys() if isinstance(row, dict) else isinstance(row, list) and not chosen.needs):
        needs = ", ".join(sorted(chosen.needs)) or "a list"
        raise DataError(f"the row does not have the shape of format {chosen.name} ({needs}); keys seen: {keys_of(row)}")
    for name in present(row, _UNSUPPORTED) if isinstance(row, dict) else ():
        meaning, kinds = _UNSUPPORTED[name]
        known = name in chosen.needs or (name in verdicts.VERDICTS and chosen in verdicts.FORMATS)
        if chosen.kind in kinds and not known and dict.get(row, name) not in NOTHING:
            raise DataError(f"{meaning} are not supported by this reader", field=name)
    if not chosen.fits(row):
        raise DataError(f"the values are not those of format {chosen.name}; keys seen: {keys_of(row)}")


def refuse_unread(row: Fields, chosen: Format) -> None:
    """Refuse a parsed row that has a field of known meaning which its format did not read.

    Raises:
        DataError: names the field.
    """
    for name in row.unread():
        if chosen.kind in _MEANT.get(name, ()):
            raise DataError(
                f"format {chosen.name} has no place for this field and would lose what it says; move it to where the "
                "format reads it, or take it out",
                field=name,
            )
