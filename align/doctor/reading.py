"""From a path to a `History`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.doctor.history import History
from align.recipe import RecipeError
from align.recipe.text import parse
from align.report.run import read_stage
from data_formats.errors import EmptyDatasetError, MissingFileError

METRICS = "metrics.jsonl"


def read_history(path: str | Path) -> History:
    """What the ppo stage at `path` logged.

    Args:
        path: a run folder (its `ppo` is taken), a stage folder, or a metrics.jsonl.

    Raises:
        MissingFileError: no such file or folder, or no metrics.jsonl in it.
        EmptyDatasetError: no line of the file is one of a PPO iteration.
    """
    folder = stage_folder(Path(path))
    problems: list[str] = []
    stage = read_stage(folder, problems)
    settings = _settings(stage.recipe_text, folder, problems)
    history = History(stage, settings, tuple(problems))
    if not history.iterations:
        raise EmptyDatasetError(
            f"none of its {len(stage.metrics)} lines is one of a PPO iteration; name the ppo stage of a run that has "
            "logged an iteration",
            path=folder / METRICS,
        )
    return history


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


def _settings(text: str, folder: Path, problems: list[str]) -> dict[str, Any]:
    if not text:
        return {}
    try:
        values, _ = parse(text, str(folder / "recipe.yaml"))
    except RecipeError as error:
        problems.append(str(error).splitlines()[0])
        return {}
    found = values.get("ppo") if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}
