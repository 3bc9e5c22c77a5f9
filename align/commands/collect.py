"""align collect RECIPE [key=value …]: replies for people or judges to compare.

The recipe's `collect` section names the prompts and who replies: stages of the recipe, runs, folders with models or
adapters, hub ids, each sampled in its own way. OUT/items.jsonl gets a row a prompt, its replies in a shuffled order,
with who wrote them, how they were sampled and what identifies the weights. After a kill the same command goes on; what
is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from align.runs.arguments import add_overrides
from align.runtime.paths import typed_path
from align.runtime.terminal import say


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    parser = commands.add_parser("collect", help="replies for people or judges to compare", description=__doc__)
    parser.set_defaults(work=collect_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
    add_overrides(parser, example="collect.num_prompts=200")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="default: the recipe's output_dir/collect")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def collect_command(args: argparse.Namespace) -> None:
    """Collect what is not there yet; print the figures.

    Raises:
        RecipeError: the recipe is wrong, or has no `collect` section.
        AlignError: as of `align.feedback.collect.collect`.
    """
    from align.recipe import RecipeError, load_recipe
    from align.recipe.check import collect_problems

    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.collect is None:
        raise RecipeError(["has no section 'collect', which names prompts and who replies"], args.recipe)
    if problems := collect_problems(recipe):
        raise RecipeError(problems, args.recipe)
    from align.feedback.collect import ITEMS, collect

    out = typed_path(args.out or Path(recipe.output_dir) / "collect")
    found = collect(recipe, recipe.collect, out)
    if args.json:
        say(json.dumps(found, ensure_ascii=False, indent=2))
        return
    drawn = found["prompts"]
    if drawn["tags"]:
        said = f"{drawn['tags']} of {drawn['tags of all']} tags, {drawn['tags a prompt']:.2f} a prompt"
        said = f"{said} ({drawn['tags a prompt of all']:.2f} in all)"
    else:
        said = "at random, since no row has tags or a category"
    say(f"{drawn['drawn']} of {drawn['fitting']} prompts drawn: {said}")
    for what, number in found["dropped"].items():
        say(f"{number} {what} left out")
    say(f"{found['items']} items with {found['replies']} replies: {out / ITEMS}")
