"""What other rooms add to a stage once it is done: figures for its summary, arms beside it.

A hook is named "module:function" and imported when its stage has finished, so that nothing here knows it (the gold
score least of all). A stage hook is called as `hook(recipe, stage, summary)`, a chain hook as `hook(recipe, summary)`;
both return what is added to the summary, on every rank. Rows under `headline` (what, before, after) end the stage's
part of the chain's table. A stage's summary keeps the names of the hooks that are done, so that an interrupted chain
calls the others only.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

STAGE_HOOKS: dict[str, list[str]] = {
    "sft": ["align.stages.outcome:sft"],
    "rm": ["align.stages.arms:without_pmp", "align.stages.arms:manners"],
    "rejection": ["align.stages.outcome:rolled_out"],
    "ppo": ["align.stages.outcome:rolled_out"],
}
CHAIN_HOOKS: list[str] = ["align.stages.outcome:chain"]
FOLDERS: dict[str, list[str]] = {"rm": ["rm_without_pmp"]}
"""Folders under `output_dir` that the hooks of a stage write; `--fresh` removes them with the stage's own."""


def resolve(name: str) -> Callable[..., dict[str, Any]]:
    """The function that "module:function" names."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)
