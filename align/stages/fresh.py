"""`--fresh`: remove what the stages of a recipe wrote, file by file, and nothing else that may lie in the folders.

What was made from a removed stage goes with it: the stages that build on it, the comparisons of the embedded world
whose replies were sampled from it, the controls and the chain's summary.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from align.recipe import Recipe
from align.recipe.lineage import stage_dir
from align.recipe.sources import LABELLED_SETS, world_dir
from align.runs.files import storage_errors
from align.stages import hooks
from align.stages.changes import descendants
from align.stages.common import MADE_BY_STAGES, is_main

CONTROL_ARMS = ("rm_", "sft_", "ppo_")
CONTROL_FILES = ("summary.json", "good_demonstrations.jsonl")
SAMPLED_FROM = frozenset({"base", "sft"})


def clear_chain(recipe: Recipe) -> None:
    """Remove every stage of the recipe with what was made from it, and the embedded world."""
    clear_stages(recipe, recipe.stages)
    if recipe.tinyworld is not None and is_main():
        _remove(world_dir(recipe), [file.name for file in world_dir(recipe).glob("*.json*")])


def clear_stages(recipe: Recipe, stages: tuple[str, ...]) -> list[str]:
    """Remove what these stages and their hooks wrote, and what was made from it, the last first.

    Returns:
        Words for what was there of the latter, for the user; on the rank that writes files only.
    """
    if not is_main():
        return []
    root = Path(recipe.output_dir)
    others = [stage for stage in descendants(recipe, stages) if stage not in stages]
    gone = [stage for stage in others if any((stage_dir(recipe, stage) / name).exists() for name in MADE_BY_STAGES)]
    (root / "summary.json").unlink(missing_ok=True)
    if _clear_controls(root / "controls"):
        gone.append("the controls")
    for stage in reversed(descendants(recipe, stages)):
        for name in (stage, *hooks.FOLDERS.get(stage, [])):
            _remove(root / name, MADE_BY_STAGES)
    if recipe.tinyworld is not None and SAMPLED_FROM & set(stages):
        names = [f"{name}{ending}" for name in LABELLED_SETS for ending in (".jsonl", ".info.json")]
        if _remove(world_dir(recipe), names):
            gone.append("the comparisons of sampled replies")
    return gone


def _clear_controls(folder: Path) -> bool:
    arms = [path for path in folder.glob("*") if path.is_dir() and path.name.startswith(CONTROL_ARMS)]
    found = [_remove(arm, MADE_BY_STAGES) for arm in arms]
    return any([*found, _remove(folder, CONTROL_FILES)])


def _remove(folder: Path, names: Iterable[str]) -> bool:
    """Remove `names` in `folder`, the summary first (what is half removed is not finished), and it when it is empty.

    Returns:
        Whether anything was there.
    """
    found = False
    with storage_errors(folder, "remove what is in"):
        for name in sorted(names, key=lambda name: name != "summary.json"):
            path = folder / name
            found |= path.exists()
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return found
