"""Everything that is wrong with a recipe, at once: in full key paths and plain sentences, with "did you mean"."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from align.recipe.foreign_keys import FOREIGN
from align.runtime.errors import AlignError
from align.runtime.paths import typed_path
from align.runtime.terminal import shortened

Loc = tuple[str | int, ...]

LONGEST_KEY = 200  # characters of a key in a sentence
MOST_KEYS = 12  # of a section that are listed; of a larger one the nearest few
NEAREST = 5


class RecipeError(AlignError, ValueError):
    """A recipe that cannot be used.

    Args:
        problems: one sentence each; those about a key begin with its full path, `ppo.kl_coef: …`.
        source: the recipe's file or name, for the heading.
    """

    def __init__(self, problems: Sequence[str], source: str = "recipe"):
        self.problems, self.source = tuple(problems), source
        if len(self.problems) == 1:
            super().__init__(f"{source}: {self.problems[0]}")
        else:
            listed = "\n".join(f"  {problem}" for problem in self.problems)
            super().__init__(f"{source} has {len(self.problems)} errors:\n{listed}")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong at `loc`."""

    loc: Loc
    text: str

    def __str__(self) -> str:
        return f"{shortened(dotted(self.loc), LONGEST_KEY)}: {self.text}" if self.loc else self.text


def dotted(loc: Iterable[str | int]) -> str:
    """`('sft', 'data', 0, 'path')` -> `sft.data.0.path`, the form that overrides use too."""
    return ".".join(str(part) for part in loc)


def did_you_mean(word: str, possible: Iterable[str]) -> str | None:
    """The closest of `possible`, or None when nothing is near. Of two letters one may be wrong (`rn` for `rm`)."""
    cutoff = 0.5 if len(word) <= 2 else 0.6
    return next(iter(difflib.get_close_matches(word.lower(), list(possible), n=1, cutoff=cutoff)), None)


def path_problem(key: str, value: str, stages: Sequence[str] = ()) -> list[str]:
    """What is wrong with a word that names a model: a folder that is not there, or nearly one of the `stages` that it
    may name as well; nothing where it may be a hub id."""
    if typed_path(value).exists():
        return []
    near = did_you_mean(value, stages)
    if near and "/" not in value:
        return [f"{key}: '{value}' is neither a stage nor a folder; did you mean '{near}'?"]
    if value.startswith((".", "~", "/")) or value.count("/") > 1 or "\\" in value:
        return [f"{key}: no such folder {value}"]
    return []  # may be a hub id


def section_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """The section class that lives at `loc` below `model`; the first of several that may."""
    found = [model]
    for part in loc:
        if not isinstance(part, int):
            found = _below(found, part)
    return next(iter(found), None)


def _below(sections: list[type[BaseModel]], part: str) -> list[type[BaseModel]]:
    """Where `part` leads from one of `sections`: into a field, or to the section whose `kind` it is."""
    kinds = [section for section in sections if part in _kinds(section)]
    fields = [section.model_fields[part] for section in sections if part in section.model_fields]
    return kinds or [inner for field in fields[:1] for inner in sections_of(field.annotation)]


def _kinds(section: type[BaseModel]) -> tuple[str, ...]:
    field = section.model_fields.get("kind")
    return typing.get_args(field.annotation) if field is not None else ()


def written_at(model: type[BaseModel], loc: Loc) -> Loc:
    """`loc` as the recipe spells it: pydantic puts the `kind` of a section among the keys that lead to it."""
    found, kept = [model], []
    for part in loc:
        is_kind = not isinstance(part, int) and any(part in _kinds(section) for section in found)
        if not is_kind:
            kept.append(part)
        if not isinstance(part, int):
            found = _below(found, part)
    return tuple(kept)


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section classes that a field of this annotation may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for part in typing.get_args(annotation):
            yield from sections_of(part)


def _homes(model: type[BaseModel], key: str, path: Loc = ()) -> Iterator[Loc]:
    for name, field in model.model_fields.items():
        if name == key and path:
            yield (*path, name)
        for section in sections_of(field.annotation):
            yield from _homes(section, key, (*path, name))


def _meant(model: type[BaseModel], loc: Loc) -> str | None:
    """The key that an unknown one at `loc` was probably meant to be."""
    return did_you_mean(str(loc[-1]), (section_at(model, loc[:-1]) or model).model_fields)


def has_key(model: type[BaseModel], key: str) -> bool:
    """Whether recipes have the dotted `key`; of a list's elements it names no number."""
    *parent, name = key.split(".")
    section = section_at(model, tuple(parent))
    return section is not None and name in section.model_fields


def foreign_homes(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that one of another library (`align.recipe.foreign_keys`) at `loc` stands for: those of the same part of
    the recipe, where it has any."""
    patterns, _ = FOREIGN.get(str(loc[-1]), ("", ""))
    found: list[str] = []
    for pattern in patterns.split():
        start, _, rest = pattern.partition(".")
        keys = [f"{name}.{rest}" for name in model.model_fields] if start == "*" else [pattern]
        found += [key for key in keys if has_key(model, key) and key not in found]
    return _nearby(found, loc) or found


def _nearby(homes: list[str], loc: Loc) -> list[str]:
    """Those of the part of the recipe that `loc` is in."""
    return [home for home in homes if home.partition(".")[0] == loc[0]]


def _listed(homes: list[str]) -> str:
    """`sft.data`, `rm.margin or pmp.margin`, `data of base, sft, pmp or rm`."""
    firsts: dict[str, list[str]] = {}
    for home in homes:
        first, _, rest = home.partition(".")
        firsts.setdefault(rest, []).append(first)
    words: list[str] = []
    for rest, heads in firsts.items():
        if rest and len(heads) > 2:
            words.append(f"{rest} of {', '.join(heads[:-1])} or {heads[-1]}")
        else:
            words += [f"{head}.{rest}" if rest else head for head in heads]
    return (", or " if len(words) < len(homes) else " or ").join(words)


def _unknown(model: type[BaseModel], loc: Loc) -> Problem:
    section, meant = section_at(model, loc[:-1]) or model, _meant(model, loc)
    *parent, key = loc = written_at(model, loc)
    if key in section.gone:
        return Problem(loc, f"unknown key: {section.gone[key]}")
    if named := foreign_homes(model, loc):
        differs = FOREIGN[str(key)][1]
        return Problem(loc, f"unknown key; here it is {_listed(named)}" + (f" ({differs})" if differs else ""))
    homes = list(dict.fromkeys(dotted(home) for home in _homes(model, str(key))))
    if meant and not _nearby(homes, loc):
        return Problem(loc, f"unknown key; did you mean '{meant}'?")
    place = f"the section '{dotted(parent)}'" if parent else "a recipe"
    if homes:
        return Problem(loc, f"unknown key in {place}; it belongs at {_listed(_nearby(homes, loc) or homes)}")
    return Problem(loc, f"unknown key; {place} knows {_some_keys(str(key), list(section.model_fields))}")


def _some_keys(key: str, known: list[str]) -> str:
    if len(known) <= MOST_KEYS:
        return ", ".join(known)
    near = difflib.get_close_matches(key.lower(), known, n=NEAREST, cutoff=0.0)
    return f"{len(known)} others, among them {', '.join(near)}; docs/recipe.md has them all"


def _kind(loc: Loc, error: dict) -> Problem:
    """A section that does not say which of several kinds it is, or names none of them."""
    loc = (*loc, "kind")
    if error["type"] == "union_tag_not_found":
        return Problem(loc, "is required but missing")
    tag, known = str(error["ctx"]["tag"]), error["ctx"]["expected_tags"].replace("'", "").split(", ")
    near = did_you_mean(tag, known)
    hint = f"did you mean '{near}'?" if near else f"it knows {', '.join(known)}"
    return Problem(loc, f"there is no kind '{shortened(tag)}'; {hint}")


_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "model_type": "a section (keys and values)",
    "model_attributes_type": "a section (keys and values)",
    "dict_type": "a section (keys and values)",
}


def _shown(value: Any) -> str:
    if isinstance(value, dict | list | tuple):
        return "a section" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else f"'{shortened(value)}' (text)" if isinstance(value, str) else str(value)


def _sentence(error: dict) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}, not {_shown(value)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        near = (
            did_you_mean(value, [part.strip("'") for part in context["expected"].replace(" or ", ", ").split(", ")])
            if (isinstance(value, str))
            else None
        )
        return f"must be {context['expected']}, not {_shown(value)}" + (f"; did you mean '{near}'?" if near else "")
    bounds = {
        "greater_than": ("gt", "above"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "below"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in bounds:
        name, word = bounds[kind]
        return f"must be {word} {context[name]}, not {_shown(value)}"
    if kind in ("too_short", "string_too_short"):
        return "must not be empty"
    return f"{error['msg']} (found {_shown(value)})"


def describe(model: type[BaseModel], errors: Iterable[dict]) -> list[Problem]:
    """Problems in the order pydantic found them."""
    found, errors = [], list(errors)
    places = [tuple(error["loc"]) for error in errors]
    unknown = [loc for error, loc in zip(errors, places, strict=True) if error["type"] == "extra_forbidden"]
    misspelt = {(*loc[:-1], _meant(model, loc)) for loc in unknown}
    misspelt |= {tuple(home.split(".")) for loc in unknown for home in foreign_homes(model, loc)}
    for error, loc in zip(errors, places, strict=True):
        kind = error["type"]
        # A list whose elements are wrong counts as empty for pydantic, and a misspelt key as missing.
        if kind == "too_short" and any(place[: len(loc)] == loc and place != loc for place in places):
            continue
        if kind == "missing" and loc in misspelt:
            continue
        if kind == "extra_forbidden":
            found.append(_unknown(model, loc))
        elif kind == "missing":
            found.append(Problem(written_at(model, loc), "is required but missing"))
        elif kind in ("union_tag_not_found", "union_tag_invalid"):
            found.append(_kind(written_at(model, loc), error))
        else:
            found.append(Problem(written_at(model, loc), _sentence(error)))
    return found
