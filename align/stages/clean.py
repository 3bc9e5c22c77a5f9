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
from align.recipe.registry import STAGES
from align.recipe.sources import LABELLED_SETS, SAMPLED_FROM, world_dir
from align.runtime.files import storage_errors, sweep
from align.stages.common import MADE_BY_STAGES, is_main
from align.stages.recipe_guard import descendants

CONTROL_FOLDERS = ("rm_", "sft_", "ppo_")
CONTROL_FILES = ("summary.json", "good_demonstrations.jsonl")
_LABELLED_FILES = [f"{name}{ending}" for name in LABELLED_SETS for ending in (".jsonl", ".info.json")]


def clear_chain(recipe: Recipe) -> None:
    """Remove every stage of the recipe with what was made from it, and the embedded world."""
    clear_stages(recipe, recipe.stages)
    if recipe.tinyworld is not None and is_main():
        remove(world_dir(recipe), _world_files(recipe))


def clear_stages(recipe: Recipe, stages: tuple[str, ...]) -> list[str]:
    """Remove what these stages and their evaluation wrote, and what was made from it, the last first.

    Returns:
        Words for what was there of the latter, for the user; on the rank that writes files only.
    """
    if not is_main():
        return []
    gone = made_from(recipe, stages)
    clear_chain_results(recipe)
    for stage in reversed(descendants(recipe, stages)):
        remove(stage_dir(recipe, stage), MADE_BY_STAGES)
        clear_beside(recipe, stage)
    if _samples_for_world(recipe, stages):
        remove(world_dir(recipe), _LABELLED_FILES)
    return gone


def clear_chain_results(recipe: Recipe) -> None:
    """Remove what was made from the whole chain: its summary and the controls."""
    root = Path(recipe.output_dir)
    (root / "summary.json").unlink(missing_ok=True)
    for control in _control_folders(root / "controls"):
        remove(control, MADE_BY_STAGES)
    remove(root / "controls", CONTROL_FILES)


def clear_beside(recipe: Recipe, stage: str) -> None:
    """Remove what the evaluation of a stage wrote in folders of its own."""
    for name in STAGES[stage].beside:
        remove(stage_dir(recipe, name), MADE_BY_STAGES)


def made_from(recipe: Recipe, stages: tuple[str, ...]) -> list[str]:
    """Words for what is there that was made from these stages, and goes with them."""
    others = [stage for stage in descendants(recipe, stages) if stage not in stages]
    found = [stage for stage in others if holds(stage_dir(recipe, stage), MADE_BY_STAGES)]
    controls = Path(recipe.output_dir) / "controls"
    if holds(controls, CONTROL_FILES) or any(holds(control, MADE_BY_STAGES) for control in _control_folders(controls)):
        found.append("the controls")
    if _samples_for_world(recipe, stages) and holds(world_dir(recipe), _LABELLED_FILES):
        found.append("the comparisons of sampled replies")
    return found


def whole_run(recipe: Recipe) -> list[str]:
    """Words for everything that `clear_chain` would remove."""
    world = ["the embedded world's sets"] if recipe.tinyworld is not None and _world_files(recipe) else []
    return doomed(recipe, recipe.stages) + world


def doomed(recipe: Recipe, stages: tuple[str, ...]) -> list[str]:
    """Words for everything that `clear_stages` would remove."""
    states = {True: "finished", False: "begun"}
    there = [
        f"{stage} ({states[(stage_dir(recipe, stage) / 'summary.json').is_file()]})"
        for stage in stages
        if holds(stage_dir(recipe, stage), MADE_BY_STAGES)
    ]
    return there + made_from(recipe, stages)


def holds(folder: Path, names: Iterable[str]) -> bool:
    """Whether any of `names` is in `folder`."""
    return any((folder / name).exists() for name in names)


def _samples_for_world(recipe: Recipe, stages: tuple[str, ...]) -> bool:
    return recipe.tinyworld is not None and bool(SAMPLED_FROM & set(stages))


def _world_files(recipe: Recipe) -> list[str]:
    return [file.name for file in world_dir(recipe).glob("*.json*")]


def _control_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.is_dir() and path.name.startswith(CONTROL_FOLDERS)]


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove `names` in `folder`, the summary first (what is half removed is not finished), and it when it is empty."""
    with storage_errors(folder, "remove what is in"):
        sweep(folder)
        for name in sorted(names, key=lambda name: name != "summary.json"):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
