"""align plan RECIPE [--gpu 24GB] [key=value …]: memory, work and disk use of every stage, before anything is loaded.

Worked out from the model's shape and the recipe's numbers in under a second: weights, optimizer state, gradients,
activations, logits and the cache of rollouts, at the moment of each stage at which most is held, on one process. With
--gpu a recipe that needs more than the card has is refused, with the changes (each found by planning again) that make
it fit.

exit code: 0, or 3 when the card is too small; 1 for a recipe or a model that cannot be planned
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from align.commands.options import positive
from align.runs.arguments import add_overrides
from align.runtime.terminal import say

TOO_SMALL = 3


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "predict the memory and the disk use of every stage, and what would make it fit"
    parser = commands.add_parser("plan", help=words, description=__doc__)
    parser.set_defaults(work=plan_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
    add_overrides(parser, example="sft.micro_batch_size=1")
    parser.add_argument("--gpu", metavar="SIZE", help="memory of the card, for example 24GB")
    parser.add_argument("--num-processes", type=positive, default=1, metavar="N", help="ranks under DDP (default 1)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object, in bytes")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def plan_command(args: argparse.Namespace) -> int:
    """Print the plan; returns the exit code.

    Raises:
        RecipeError: the recipe is wrong.
        PlanError: a model's shape is not known, or --gpu is no size.
    """
    from align.data.preview import epochs_said
    from align.plan import card, plan_stages, propose
    from align.plan.disk import describe_disk, disk_warning
    from align.plan.show import as_data, describe, describe_cost
    from align.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides, world_size=args.num_processes)
    size = None if args.gpu is None else card.read_size(args.gpu)
    plans = plan_stages(recipe, ranks=args.num_processes)
    limit = None if size is None else card.usable(size)
    fits = limit is None or all(plan.peak.bytes <= limit for plan in plans)
    proposal = None if fits else propose(recipe, limit, ranks=args.num_processes)
    if args.json:
        shown: dict[str, Any] = {"recipe": recipe.name, "stages": as_data(plans)}
        if limit is not None:
            shown |= {"gpu": size, "usable": limit, "fits": fits}
        if not fits:
            shown["proposal"] = None if proposal is None else {"changes": proposal.changes, "peak": proposal.peak}
        say(json.dumps(shown, ensure_ascii=False, indent=2))
    else:
        say(describe(plans))
        say("\n" + describe_cost(recipe, plans, args.num_processes))
        if epochs := "\n".join(epochs_said(recipe)):
            say("\n" + epochs)
        say("\n" + describe_disk(plans))
        if warning := disk_warning(recipe, plans):
            say(f"\nwarning: {warning}")
        if limit is not None:
            say("\n" + _verdict(recipe, plans, args, limit, proposal))
    return 0 if fits else TOO_SMALL


def _verdict(recipe: Any, plans: list, args: argparse.Namespace, limit: int, proposal: Any) -> str:
    from align.plan.parts import gib
    from align.plan.propose import alone

    worst = max(plans, key=lambda plan: plan.peak.bytes)
    has = f"a card of {args.gpu}, of which {gib(limit)} GiB can be used"
    if worst.peak.bytes <= limit:
        return f"fits on {has}"
    lines = [f"{worst.stage} needs {gib(worst.peak.bytes)} GiB and does not fit on {has}"]
    single = alone(recipe, worst, ranks=args.num_processes)
    lines += [f"  {' '.join(one.changes)}: {gib(one.peak)} GiB" for one in single]
    if proposal is None:
        return "\n".join([*lines, "no change that this command knows makes the recipe fit on that card"])
    return "\n".join([*lines, f"fits, with {gib(proposal.peak)} GiB at most, by: {' '.join(proposal.changes)}"])
