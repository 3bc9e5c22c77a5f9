"""The further fields of prompt rows, which reach reward functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_formats.records import Prompt

OWN = frozenset({"category", "reference", "source", "tools"})  # fields of the record itself


def is_plain(value: Any) -> bool:
    """Whether a value is what JSON can hold: a text, a number, true or false, and lists and objects of these."""
    if isinstance(value, list):
        return all(inner is None or is_plain(inner) for inner in value)
    if isinstance(value, dict):
        return all(isinstance(name, str) and (inner is None or is_plain(inner)) for name, inner in value.items())
    return isinstance(value, str | int | float)  # bool is an int


def further_columns(row: dict[str, Any], needed: frozenset[str]) -> dict[str, Any]:
    """The fields of a row beside those that its format needs and the record has.

    A `reference` of several answers, of which the record has the first, is the column `references`; an object
    `columns`, as our own rows write it, is its fields.
    """
    names = [name for name, value in row.items() if name not in needed | OWN and is_plain(value)]
    columns = {name: row[name] for name in names}
    if isinstance(row.get("reference"), list | dict):
        columns["references"] = row["reference"]
    if isinstance(columns.get("columns"), dict):
        columns |= columns.pop("columns")
    return columns


def with_all_columns(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, each with every column that any of them has, None where its row lacks it.

    A reward function is then called with the same columns, whichever prompts a batch holds.
    """
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return [
        prompt
        if prompt.columns.keys() == names.keys()
        else replace(prompt, columns={name: prompt.columns.get(name) for name in names})
        for prompt in prompts
    ]
