"""From a YAML file and `key=value` overrides to a frozen `Recipe`, or to every error in them at once.

Types are strict (`seed: "3"` is an error, `learning_rate: 1` is fine). The errors of one round are told at once: first
those of single fields, and where there are none, those between fields (`validate`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align.recipe.batch import batch_problem, launched_world_size
from align.recipe.errors import LONGEST_KEY, Loc, Problem, RecipeError, describe, dotted
from align.recipe.schema import Recipe
from align.recipe.section import Section
from align.recipe.text import DEEPEST, Lines, dump, parse, read
from align.runtime.terminal import shortened


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found. `recipe` is None where a field is wrong; without `problems` it can be used."""

    recipe: Recipe | None
    problems: tuple[str, ...]
    source: str


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, world_size: int | None = None) -> Recipe:
    """Load, override and validate a recipe.

    Args:
        path: a YAML file, or the name of a shipped recipe (`quickstart`).
        overrides: `dotted.key=VALUE`, VALUE in YAML (`ppo.kl_coef=0.1`, `sft.data=[a.jsonl]`; `ppo=null` drops it);
            a number picks an element of a list (`sft.data.0.limit=100`). The last one wins.
        world_size: ranks to check the batch split for; default as launched.

    Raises:
        MissingFileError: no such file or shipped recipe.
        RecipeError: with every problem found.
    """
    found = inspect(path, overrides, world_size=world_size)
    if found.problems or found.recipe is None:
        raise RecipeError(found.problems, found.source)
    return found.recipe


def inspect(path: str | Path, overrides: Sequence[str] = (), *, world_size: int | None = None) -> Inspection:
    """As `load_recipe`, but hands the problems back. Raises only for what cannot be read at all."""
    from align.recipe.shipped import find_recipe

    file = find_recipe(path)
    data, lines = parse(read(file, str(path)), str(path))
    if not isinstance(data, dict):
        raise RecipeError(["is empty" if data is None else "must be a YAML mapping of keys to values"], str(path))
    problems = [problem for item in overrides if (problem := _override(data, item, lines))]
    recipe, found = validate(data, launched_world_size() if world_size is None else world_size)
    problems += [_with_line(problem, lines) for problem in found]
    return Inspection(recipe, tuple(dict.fromkeys(problems)), str(path))


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, defaults included, as YAML that loads again to an equal `Recipe`."""
    return dump(recipe.model_dump(mode="json"))


def _with_line(problem: Problem | str, lines: Lines) -> str:
    line = lines.get(problem.loc) if isinstance(problem, Problem) and problem.loc else None
    return f"{problem} (line {line})" if line else str(problem)


def _override(data: dict, item: str, lines: Lines) -> str | None:
    """Put one `key=value` into `data`; a sentence when that is impossible."""
    key, equals, text = item.partition("=")
    parts = [part.strip() for part in key.split(".")]
    key, item = shortened(key, LONGEST_KEY), shortened(item, LONGEST_KEY)
    if not equals or not all(parts):
        return f"'{item}' is not an override; write key=value with a dotted key, for example ppo.kl_coef=0.1"
    if len(parts) > DEEPEST:
        return f"{key}: nested deeper than {DEEPEST} levels"
    try:
        value, _ = parse(text, key)
    except RecipeError as error:
        return f"{key}: the value {shortened(text)!r} is not YAML ({error.problems[0]})"
    loc: list[str | int] = []
    here: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        step: str | int = part
        if isinstance(here, list):
            if part not in map(str, range(len(here))):
                return (
                    f"{key}: '{dotted(loc)}' is a list of {len(here)}; write an element's number, 0 to {len(here) - 1}"
                )
            step = int(part)
        elif not isinstance(here, dict):
            return f"{key}: '{dotted(loc)}' is a plain value and has no keys"
        loc.append(step)
        if last:
            here[step] = value
        else:
            if isinstance(here, dict) and here.get(step) is None:
                here[step] = {}
            here = here[step]
    for known in [known for known in lines if known[: len(loc)] == tuple(loc)]:
        del lines[known]
    return None


def validate(data: dict, world_size: int) -> tuple[Recipe | None, list[Problem | str]]:
    """A recipe of plain data, in two rounds.

    Every field by itself: no recipe comes of data with unknown, missing or unreadable keys, and all of them are told.
    Then what fields are to one another: every broken rule and impossible batch split of the recipe.
    """
    try:
        # JSON mode is the strict mode that still takes a list for a tuple.
        recipe = Recipe.model_validate_json(json.dumps(data), strict=True, context={"collect_rules": True})
    except ValidationError as error:
        return None, describe(Recipe, error.errors())
    except (TypeError, ValueError) as error:
        return None, [Problem((), f"a key or value is no plain data: {error}")]
    splits = [batch_problem(recipe, stage, world_size) for stage in recipe.stages]
    return recipe, [*_rules(recipe), *filter(None, splits)]


def _rules(section: Section, loc: Loc = ()) -> Iterator[Problem]:
    """The broken rules of a section and of all sections in it."""
    for key, sentence in section.rules():
        steps = [int(step) if step.isdigit() else step for step in key.split(".")] if key else []
        yield Problem((*loc, *steps), sentence)
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _rules(value, (*loc, name))
        elif isinstance(value, tuple):
            for index, part in enumerate(value):
                if isinstance(part, Section):
                    yield from _rules(part, (*loc, name, index))
