"""From a path to a `History`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.doctor.history import History
from align.recipe import RecipeError
from align.recipe.text import parse
from align.runs.run_files import Row, StageFiles, number, read_stage
from align.runtime.errors import MissingFileError
from align.runtime.paths import typed_path
from data_formats.errors import EmptyDatasetError

METRICS = "metrics.jsonl"


def read_history(path: str | Path) -> History:
    """What the ppo stage at `path` logged.

    Args:
        path: a run folder (its `ppo` is taken), a stage folder, or a metrics.jsonl.

    Raises:
        MissingFileError: no such file or folder, or no metrics.jsonl in it.
        EmptyDatasetError: no line of the file is one of a PPO iteration.
    """
    folder = stage_folder(typed_path(path))
    problems: list[str] = []
    history = history_of(read_stage(folder, problems), problems)
    if not history.iterations:
        raise EmptyDatasetError(
            f"none of its {len(history.stage.metrics)} lines is one of a PPO iteration; name the ppo stage of a run "
            "that has logged an iteration",
            path=folder / METRICS,
        )
    return history


def history_of(stage: StageFiles, problems: Iterable[str] = ()) -> History:
    """What the rules look at, of the files that a ppo stage left; `problems` are those of reading them."""
    found = list(problems)
    stage = replace(stage, metrics=_with_step(stage.metrics, METRICS, found), samples=_with_step(stage.samples))
    settings = _settings(stage.recipe_text, f"{stage.name}/recipe.yaml", found)
    return History(stage, settings, tuple(found))


def stage_folder(path: Path) -> Path:
    """The folder that holds the metrics.jsonl which `path` means. Raises MissingFileError."""
    if path.name == METRICS and path.is_file():
        return path.parent
    if path.is_file():
        raise MissingFileError(f"{path}: is another file; name a run folder, its ppo folder or its {METRICS}")
    if not path.is_dir():
        raise MissingFileError(f"{path}: no such run folder, stage folder or {METRICS}")
    for folder in (path, path / "ppo"):
        if (folder / METRICS).is_file():
            return folder
    raise MissingFileError(f"{path}: holds no {METRICS} and no ppo/{METRICS}; name a run whose ppo stage has begun")


def _with_step(rows: list[Row], name: str = "", problems: list[str] | None = None) -> list[Row]:
    """The rows that have a step, as a whole number; `problems` is told of the others."""
    kept = [row | {"step": int(step)} for row in rows if (step := number(row.get("step"))) is not None]
    if problems is not None and len(kept) < len(rows):
        problems.append(f"{name}: {len(rows) - len(kept)} of {len(rows)} lines have no step")
    return kept


def _settings(text: str, name: str, problems: list[str]) -> dict[str, Any]:
    if not text:
        return {}
    try:
        values, _ = parse(text, name)
    except RecipeError as error:
        problems.append(str(error).splitlines()[0])
        return {}
    found = values.get("ppo") if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}
