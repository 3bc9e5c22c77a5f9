"""`--out FOLDER`: the files that launch a scaled recipe: the recipe with its keys, accelerate's configuration, and the
commands in a script of a line a stage of the launch.

Precision and activation checkpointing are the recipe's and stand in no configuration of accelerate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.plan.parts import GIB
from align.recipe.shipped import recipes_folder
from align.recipe.text import dump, parse, read
from align.runtime.files import atomic_dir, require_new, write_text
from align.scale.choose import Scaled
from align.scale.layout import Layout

RECIPE, ACCELERATE, SCRIPT = "recipe.yaml", "accelerate.yaml", "launch.sh"
FSDP2 = "accelerate/fsdp2.yaml"  # the shipped file whose sharding this is


def accelerate_config(layout: Layout) -> dict[str, Any]:
    """Accelerate's configuration of a layout; of several machines, each says its own rank and where the first is."""
    kinds = {"one": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"}
    kinds |= {"ddp": "MULTI_CPU"} if layout.cluster.card.name == "CPU" else {}
    found: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kinds[layout.sharding],
        "num_machines": layout.training_nodes,
        "num_processes": layout.ranks,
    }
    if layout.training_nodes > 1:
        found |= {"main_process_port": 29500, "rdzv_backend": "static", "same_network": True}
    elif layout.ranks > 1:
        found["main_process_port"] = 0  # one that is free
    if layout.sharded:
        file = recipes_folder() / FSDP2
        found["fsdp_config"] = parse(read(file, str(file)), str(file))[0]["fsdp_config"]
    return found


def write_files(scaled: Scaled, folder: Path) -> None:
    """Write them; the folder must not be there.

    Raises:
        StorageError: it cannot be written, or is there already.
    """
    require_new(folder, "the files to launch")
    data = scaled.recipe.model_dump(mode="json", exclude_unset=True)
    with atomic_dir(folder) as draft:
        write_text(draft / RECIPE, dump(data))
        write_text(draft / ACCELERATE, dump(accelerate_config(scaled.layout)))
        write_text(draft / SCRIPT, script(scaled))


def script(scaled: Scaled) -> str:
    """The commands, as a shell script that says what is to be replaced."""
    layout = scaled.layout
    lines = ["#!/bin/sh", f"# {layout.cluster.words}: {layout.words}", "set -eu", 'cd "$(dirname "$0")"']
    if layout.servers:
        where = "the ranks' own cards" if layout.shared else "cards of their own"
        rollout = scaled.recipe.ppo.rollout
        model = scaled.recipe.ppo.init_from or scaled.recipe.model.path
        lines += [
            "",
            f"# {layout.servers} servers on {where} come first; {RECIPE} names them in rollout.vllm.urls:",
            f"# python -m rollouts.vllm.serve --model {model} --load-format dummy --dtype bfloat16 \\",
            f"#   --max-model-len {rollout.max_length} --tensor-parallel {layout.tensor_parallel}"
            + (_served(scaled) if layout.shared else ""),
        ]
    words = f"align launch --config_file {ACCELERATE}"
    if layout.training_nodes > 1:
        lines += [
            "",
            f"# on each of {layout.training_nodes} machines, NODE its number, HEAD the first one's address",
        ]
        words += ' --machine_rank "$NODE" --main_process_ip "$HEAD"'
    return "\n".join([*lines, "", f'{words} -m align.cli run {RECIPE} "$@"', ""])


def _served(scaled: Scaled) -> str:
    """What a server on the cards that train may take of them."""
    (stage,) = (one for one in scaled.stages if one.plan.stage == "ppo")
    card = scaled.layout.cluster.card.memory
    taken = stage.room + sum(p.bytes for p in stage.plan.peak.parts if (p.role, p.kind) == ("engine", "weights"))
    return f" --kv-cache-gib {stage.room / GIB:.1f} --memory-share {taken / card:.2f}"
