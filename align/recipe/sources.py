"""Where a source's records lie, and whether they are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from align.recipe.errors import did_you_mean
from align.recipe.fields import Source, TinyWorldSection
from align.recipe.registry import STAGES
from align.recipe.schema import Recipe
from align.runtime.errors import PathError
from align.runtime.paths import typed_path

WORLD = "tinyworld:"
WORLD_SETS = tuple(name for name, field in TinyWorldSection.model_fields.items() if field.annotation is int)
FORMATS = {  # the names that data_formats knows, by kind of record
    "Demonstration": (
        *("messages", "sharegpt", "alpaca", "self_instruct", "desirable", "question_answer"),
        *("prompt_completion", "question_response", "query_response", "prompt_response"),
        *("instruction_response", "problem_solution", "question_solution", "problem_generated_solution"),
        *("query_answer", "input_output", "safe", "conversation", "oasst_tree", "oasst_messages", "moss"),
        *("moss_plain", "humaneval", "mbpp", "mbpp_sanitized", "apps", "code_contests"),
    ),
    "Comparison": (
        *("preference", "instruction_preference", "question_preference", "query_preference"),
        *("problem_preference", "input_preference", "ranking", "hh", "conversation_pair", "messages_pair"),
        *("stack_exchange_paired", "arena", "alpacaeval", "ultrafeedback", "replies", "shp", "posts"),
        *("solutions", "edited", "predictions", "pku", "pku_safer", "arena55k", "by_overall_preference"),
        *("by_preference_strength", "by_preference", "by_preferred", "by_preferred_response", "by_winner"),
        *("by_label", "by_verdict", "by_choice", "by_better", "by_chosen", "best_of", "best_of_k"),
        *("rewardbench", "rm_bench", "helpsteer", "beavertails", "nectar", "by_score", "by_rating", "webgpt"),
        *("summary_axes", "edit", "edit_quality", "summaries", "oasst_tree", "oasst_messages"),
    ),
    "Prompt": (
        *("oasst_tree", "oasst_messages", "moss", "moss_plain", "mbpp", "mbpp_sanitized", "apps"),
        *("code_contests", "prompt", "question", "instruction"),
        *("self_instruct", "turns", "messages", "sharegpt", "conversation", "query", "problem", "input"),
        *("context", "summarised", "bfcl", "arena55k", "turn_list"),
    ),
    "Document": ("text",),
}
KINDS_OF_KEYS = {"ptx_data": "Document", "reference_data": "Demonstration", "against": "Prompt"}
COLLECT, ROUNDS = "collect", "rounds"  # sections beside the stages that have sources too, of prompts
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LABELLED_SETS = ("comparisons", "heldout_comparisons")  # those that hold replies sampled from the sft stage's model
SAMPLED_FROM = frozenset({"base", "sft"})  # the stages that these replies come from


def world_dir(recipe: Recipe) -> Path:
    """Where the embedded world is written."""
    return Path(recipe.output_dir) / "world"


def world_seed(recipe: Recipe) -> int:
    """What the embedded world is made of."""
    own = recipe.tinyworld.seed if recipe.tinyworld is not None else None
    return recipe.seed if own is None else own


def source_path(recipe: Recipe, source: Source) -> Path:
    """The file of a source: `tinyworld:NAME` is `<output_dir>/world/NAME.jsonl`; others start at `data_root`."""
    if source.path.startswith(WORLD):
        return world_dir(recipe) / f"{source.path.removeprefix(WORLD)}.jsonl"
    file = typed_path(source.path)
    return file if file.is_absolute() or recipe.data_root is None else typed_path(typed_path(recipe.data_root) / file)


def stage_sources(recipe: Recipe, stage: str) -> Iterator[tuple[str, Source]]:
    """Every source of a stage, of `collect` or `rounds`, with its full key path, `sft.data.0`; those that cleaning
    compares with come last."""
    section = getattr(recipe, stage)
    for name in type(section).model_fields:
        value = getattr(section, name)
        listed = enumerate(value) if isinstance(value, tuple) else ()
        yield from ((f"{stage}.{name}.{index}", one) for index, one in listed if isinstance(one, Source))
    cleaning = getattr(section, "cleaning", None)
    if cleaning is not None and cleaning.decontamination is not None:
        key = f"{stage}.cleaning.decontamination.against"
        yield from ((f"{key}.{at}", source) for at, source in enumerate(cleaning.decontamination.against))


def source_problem(recipe: Recipe, key: str, source: Source) -> str | None:
    """What is wrong with one source, or None."""
    if source.hub is not None:
        return _hub_problem(key, source.hub)
    if not source.path:
        return None  # a rule of `Source` says it
    if source.path.startswith(WORLD):
        return _world_problem(recipe, key, source.path.removeprefix(WORLD))
    try:
        file = source_path(recipe, source)
    except PathError as error:
        return f"{key}.path: {error}"
    if file.is_file():
        return None
    if file.is_dir():
        return f"{key}.path: {file} is a folder, not a file"
    hint = "; set data_root=<folder> to say where the files lie" if _needs_root(recipe, source) else ""
    inside = _inner_root(recipe, source)
    if inside:
        return f"data_root: the files lie one folder deeper; did you mean data_root={inside}?"
    near = did_you_mean(file.name, [other.name for other in file.parent.iterdir()]) if file.parent.is_dir() else None
    return f"{key}.path: no such file {file}" + (f"; did you mean '{near}'?" if near else hint)


def _hub_problem(key: str, name: str) -> str | None:
    """A dataset's id cannot be looked up here, but a folder can, and what is neither is refused."""
    if typed_path(name).is_dir():
        return None
    if name.startswith((".", "/", "~")):
        return f"{key}.hub: no such folder {name}"
    return None if _HUB_ID.fullmatch(name) else f"{key}.hub: '{name}' is neither a dataset's id (org/name) nor a folder"


def _needs_root(recipe: Recipe, source: Source) -> bool:
    return recipe.data_root is None and not typed_path(source.path).is_absolute()


def _inner_root(recipe: Recipe, source: Source) -> Path | None:
    if recipe.data_root is None or typed_path(source.path).is_absolute():
        return None
    folders = sorted(typed_path(recipe.data_root).iterdir())
    return next((folder for folder in folders if (folder / source.path).is_file()), None)


def _world_problem(recipe: Recipe, key: str, name: str) -> str | None:
    if name not in WORLD_SETS:
        near = did_you_mean(name, WORLD_SETS)
        hint = f"did you mean '{WORLD}{near}'?" if near else f"it knows {', '.join(WORLD_SETS)}"
        return f"{key}.path: the embedded world has no set '{name}'; {hint}"
    if recipe.tinyworld is None:
        return f"{key}.path: '{WORLD}{name}' needs the section 'tinyworld', which says how large the sets are"
    if name in LABELLED_SETS and recipe.sft is None:
        return f"{key}.path: '{WORLD}{name}' holds replies sampled from the sft stage's model; add an 'sft' stage"
    return None


def source_problems(recipe: Recipe, stage: str) -> list[str]:
    """What is wrong with the sources of a stage; a missing `data_root` is told once."""
    if recipe.data_root is not None and not typed_path(recipe.data_root).is_dir():
        return [f"data_root: no such folder {recipe.data_root}; set data_root=<folder> to say where the files lie"]
    return [
        problem
        for key, source in stage_sources(recipe, stage)
        for problem in (_format_problem(key, source), source_problem(recipe, key, source))
        if problem
    ]


def kind_of(key: str) -> str:
    """The kind of record, by its name, that the source of a full key path (`sft.data.0`) is read as."""
    parts = key.split(".")
    return KINDS_OF_KEYS.get(parts[-2]) or ("Prompt" if parts[0] in (COLLECT, ROUNDS) else STAGES[parts[0]].records)


def _format_problem(key: str, source: Source) -> str | None:
    kind = kind_of(key)
    known = ("auto", *FORMATS[kind])
    if source.format in known:
        return None
    near = did_you_mean(source.format, known)
    hint = f"did you mean '{near}'?" if near else f"it knows {', '.join(known)}"
    return f"{key}.format: there is no format '{source.format}' for {kind.lower()}s; {hint}"
