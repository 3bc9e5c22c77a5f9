"""align scale RECIPE --to 7B|72B --on 8xH200[,N nodes] [key=value …]: a layout on many cards, before any is rented.

From the memory plan's arithmetic: how many ranks, DDP or FSDP2, engines in the ranks or servers, micro-batches; what a
card holds, by role; seconds by phase from FLOPs, bandwidth and interconnect, with stated efficiencies or those of a
probe; hours, and what bounds each phase. With --out also the files to launch it.

exit code: 0, or 3 when no layout fits; 1 for a recipe, a model or cards that cannot be read
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from align.runs.arguments import add_overrides
from align.runtime.terminal import say

UNFIT = 3


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "lay a recipe out on many cards: memory, seconds by phase, hours, and the files to launch it"
    parser = commands.add_parser("scale", help=words, description=__doc__)
    parser.set_defaults(work=scale_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
    add_overrides(parser, example="ppo.rollout.max_completion_length=512")
    parser.add_argument("--on", required=True, metavar="CARDS", help="for example H200, 8xH200, 8xH200,4")
    parser.add_argument("--to", metavar="SIZE", help="7B, 72B, or a model's name (default: the recipe's own model)")
    words = "a run of ppo whose efficiencies are taken; given twice, two of unlike size"
    parser.add_argument("--probe", type=Path, metavar="RUN", action="append", default=[], help=words)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write recipe, accelerate config and commands there")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def scale_command(args: argparse.Namespace) -> int:
    """Print the layout; returns the exit code.

    Raises:
        RecipeError: the recipe is wrong.
        ScaleError: cards or a size that are not known, or a probe that says too little.
        PlanError: a model's shape is not known.
    """
    from align.recipe import load_recipe
    from align.scale import Efficiency, Unfit, efficiency_of, model_of_size, read_cluster, read_probe, scale
    from align.scale.files import write_files
    from align.scale.show import as_data, describe, describe_unfit

    cluster = read_cluster(args.on)
    recipe = load_recipe(args.recipe, args.overrides, world_size=1)
    if args.to is not None:
        told = [*args.overrides, f"model.path={model_of_size(recipe, args.to)}", "model.architecture=null"]
        recipe = load_recipe(args.recipe, told, world_size=1)
    probes = [read_probe(run) for run in args.probe]
    efficiency = efficiency_of(probes) if probes else Efficiency()
    found = scale(recipe, cluster, efficiency)
    if isinstance(found, Unfit):
        text = describe_unfit(found, cluster.words)
        say(json.dumps({"recipe": recipe.name, "fits": False, "why": text}, indent=2) if args.json else text)
        return UNFIT
    if args.out is not None:
        write_files(found, args.out)
    say(json.dumps(as_data(found), ensure_ascii=False, indent=2) if args.json else describe(found))
    return 0
