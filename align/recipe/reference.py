"""The manual's recipe reference, from the schema: `python -m align.recipe.reference > docs/recipe.md`.

One block a section class: what it is, where it stands in a recipe, and of each key the type with its bounds, the
default and the meaning, which is the string under the field in the source.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import types
import typing
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from align.recipe.errors import sections_of
from align.recipe.registry import STAGES
from align.recipe.schema import Recipe
from align.recipe.section import Section

HEAD = """\
# Recipe reference

<!-- Written by `python -m align.recipe.reference > docs/recipe.md`; a test holds it to the schema. -->

A recipe is one YAML file. Every key can be overridden on the command line by its dotted path (`ppo.kl_coef=0.1`,
`sft.data.0.limit=100`). Unknown keys are errors, types are strict, and `align check` tells in under a second what is
wrong with a recipe: first every wrong field, then every broken rule between fields.

YAML is read as in version 1.2: `no`, `on`, `12:30` and dates are text, `1e-6` is a number; a key that occurs twice is
an error.
"""
_WORDS = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "anything"}


def reference() -> str:
    """The page."""
    found = sections()
    index = [f"| {_where(paths)} | {_link(section)} |" for section, paths in found.items()]
    blocks = [_block(section, paths) for section, paths in found.items()]
    return "\n".join([HEAD, "| where | its keys |", "|---|---|", *index, "", *blocks])


def sections() -> dict[type[Section], list[str]]:
    """Every section class, those that others inherit from before them, with the dotted paths where it stands."""
    found: dict[type[Section], list[str]] = {}
    _collect(Recipe, "", found)
    return found


def own_fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields that the class itself declares, or a private one that it extends."""
    own = {name for one in _declaring(section) for name in one.__annotations__}
    return {name: field for name, field in section.model_fields.items() if name in own}


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """What its own fields mean, on one line each: their description, or the string under them in the source."""
    found = {name: field.description for name, field in own_fields(section).items() if field.description}
    for one in _declaring(section):
        for node in ast.parse(inspect.getsource(sys.modules[one.__module__])).body:
            if isinstance(node, ast.ClassDef) and node.name == one.__name__:
                found |= dict(_strings_under_fields(node.body))
    return {name: " ".join(text.split()) for name, text in found.items()}


def _strings_under_fields(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield field.target.id, below.value.value


def _declaring(section: type[BaseModel]) -> list[type[BaseModel]]:
    return [section, *(one for one in section.__mro__ if one.__name__.startswith("_") and issubclass(one, Section))]


def _parents(section: type[Section]) -> list[type[Section]]:
    """The sections whose keys it has too."""
    return [base for base in section.__bases__ if _has_keys(base)]


def _has_keys(base: type) -> bool:
    return issubclass(base, Section) and bool(base.model_fields) and not base.__name__.startswith("_")


def _collect(section: type[Section], path: str, found: dict[type[Section], list[str]]) -> None:
    for one in filter(_has_keys, reversed(section.__mro__)):
        if path not in found.setdefault(one, []):
            found[one].append(path)
    for name, field in section.model_fields.items():
        for inner in dict.fromkeys(sections_of(field.annotation)):
            if not ("kind" in section.model_fields and "kind" in inner.model_fields):  # the two parts of a gate
                _collect(inner, f"{path}.{name}".removeprefix("."), found)


def _where(paths: list[str]) -> str:
    """Paths in words, those that several stages have as one: `cleaning` of base, sft, …."""
    words, stages = [], {}
    for path in paths:
        first, _, rest = path.partition(".")
        if first in STAGES:
            stages.setdefault(rest, []).append(f"`{first}`")
        else:
            words.append(f"`{path}`" if path else "the top of the file")
    words += [f"`{rest}` of {', '.join(names)}" if rest else ", ".join(names) for rest, names in stages.items()]
    return "; ".join(words)


def _link(section: type[BaseModel]) -> str:
    return f"[{section.__name__}](#{section.__name__.lower()})"


def _block(section: type[Section], paths: list[str]) -> str:
    """Heading, places, docstring and table of one class."""
    text, fields, meant = (
        inspect.cleandoc(section.__dict__.get("__doc__") or ""),
        own_fields(section),
        meanings(section),
    )
    inherited = " and ".join(_link(parent) for parent in _parents(section))
    parts = [f"## {section.__name__}", f"In a recipe: {_where(paths)}.", *([text] if text else [])]
    if inherited:
        parts.append(f"All keys of {inherited}{', and:' if fields else '.'}")
    if fields:
        rows = [
            f"| `{name}` | {_words(field.annotation)}{_bounds(field.metadata)} | {_default(field)} | {meant[name]} |"
            for name, field in fields.items()
        ]
        parts.append("\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _words(annotation: Any) -> str:
    """An annotation in words, with links to the sections in it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return f"{_words(inner[0])}{_bounds(inner[1:])}"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return f"list of: {_words(inner[0])}"
    if origin is dict:
        return f"section of {_words(inner[0])}: {_words(inner[1])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(part) for part in inner) if len(inner) < 4 else "section, by its `kind`"
    return _WORDS[annotation] if annotation in _WORDS else _link(annotation)


def _bounds(metadata: typing.Iterable[Any]) -> str:
    """`, above 0, at most 1` for what limits a number or a list."""
    limits = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found = []
    for limit in _flat(metadata):
        found += [f"{word} {getattr(limit, name):g}" for name, word in limits.items() if hasattr(limit, name)]
        found += ["not empty"] if hasattr(limit, "min_length") else []
    return "".join(f", {word}" for word in found)


def _flat(metadata: typing.Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        else:
            yield item


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "as there"
    if isinstance(value, str):
        return f"`{value}`" if value else "none"
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(reference(), end="")
