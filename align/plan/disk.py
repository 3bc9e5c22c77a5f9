"""What a run writes to the disk: the models of its stages and their checkpoints, which hold weights and moments.

Checkpoints that Ctrl-C or a failure leaves count as one where a stage saves none on its way. Tokenizers, logs and
samples are too small to count.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from align.plan.models import Model
from align.plan.parts import Disk, StagePlan, gib
from align.recipe import Recipe
from align.recipe.lineage import stage_dir
from align.recipe.ppo_section import PPOSection
from align.recipe.rejection_section import RejectionSection
from align.runtime.table import table

KEPT = {"none": 0, "last": 1}


def disk(recipe: Recipe, stage: str, models: Sequence[Model], *, best: bool, average: bool = False) -> Disk:
    """What a stage writes.

    Args:
        models: those that it trains.
        best: whether the best of the first is kept in a folder of its own.
        average: whether an average of the first one's weights is.
    """
    section = getattr(recipe, stage)
    saved = sum(one.saved_bytes for one in models) + (best + average) * models[0].saved_bytes
    if isinstance(section, RejectionSection):  # a model a round, the last of which has two names
        saved *= section.num_rounds
    steps = section.num_iterations if isinstance(section, PPOSection) else section.max_steps
    whole = section.save_total_limit
    if section.save_steps is None:
        whole = 0
    elif steps is not None:
        whole = min(whole, -(-steps // section.save_steps))  # the last step is one of them
    kept = 0 if isinstance(section, RejectionSection) else min(whole, KEPT.get(recipe.keep_checkpoints, whole))
    size = sum(one.checkpoint_bytes for one in models) + average * models[0].saved_bytes
    return Disk(saved, size, whole + 1, kept)


def most(plans: Sequence[StagePlan]) -> int:
    """Bytes that are on the disk at the same time, at most: what earlier stages left, and all of the one that runs."""
    left, highest = 0, 0
    for plan in plans:
        highest = max(highest, left + plan.disk.most)
        left += plan.disk.left
    return highest


def describe_disk(plans: Sequence[StagePlan]) -> str:
    """A table of what each stage writes, and how much there is at the same time, at most."""
    rows = [
        (plan.stage, gib(one.models), gib(one.checkpoint), one.number, gib(one.most), gib(one.left))
        for plan in plans
        for one in [plan.disk]
    ]
    header = ("stage", "models", "a checkpoint", "of them", "while it runs", "finished")
    return f"on the disk, GiB\n\n{table(header, rows)}\n\nat most {gib(most(plans))} GiB at the same time"


def disk_warning(recipe: Recipe, plans: Sequence[StagePlan]) -> str | None:
    """A sentence where the run needs more room on the disk than there is, beside what it has written already."""
    folder = Path(recipe.output_dir).absolute()
    there = next(part for part in (folder, *folder.parents) if part.is_dir())
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        return None
    held = sum(_size(stage_dir(recipe, plan.stage)) for plan in plans)
    needed = most(plans) - held
    if needed <= free:
        return None
    return (
        f"output_dir: {recipe.output_dir} has {gib(free)} GiB free, and the run will write {gib(needed)} GiB: make "
        "room, or set keep_checkpoints=none, a smaller save_total_limit, or another output_dir"
    )


def _size(folder: Path) -> int:
    files = (file for pattern in ("*.safetensors", "*.pt") for file in folder.rglob(pattern))
    found = 0
    for file in files:
        try:
            found += file.stat().st_size
        except OSError:  # another process is at work
            continue
    return found
