"""align collect RECIPE [key=value …]: replies for people or judges to compare.

The recipe's `collect` section names the prompts and who replies: stages of the recipe, runs, folders with models or
adapters, hub ids, each sampled in its own way. OUT/items.jsonl gets a row a prompt, its replies in a shuffled order,
with who wrote them, how they were sampled and what identifies the weights. After a kill the same command goes on; what
is there is not made again.

With --budget N pairs of these replies are chosen to be judged, OUT/to_judge.jsonl: at random, those on which the
members of an ensemble differ most (uncertain: several --reward, or one reward model under dropout of what its head
reads; by default the recipe's own), or those that are least alike (diverse). What their judgments are expected to bring
is said with its error wherever a reward is named.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from align.commands.options import positive
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
    parser.add_argument("--budget", type=positive, metavar="N", help="choose N pairs of the replies to be judged")
    parser.add_argument("--choose", choices=("random", "uncertain", "diverse"), help="how (default random)")
    words = "a reward as of `align score`, of whose spread the choice is made; repeatable"
    parser.add_argument("--reward", metavar="REWARD", action="append", default=[], help=words)
    words = "items whose pairs were chosen before and are not to be judged again; repeatable"
    parser.add_argument("--except", dest="without", metavar="FILE", action="append", default=[], help=words)
    parser.add_argument("--to", metavar="FILE", type=Path, help="where the pairs are written (default: in OUT)")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def collect_command(args: argparse.Namespace) -> None:
    """Collect what is not there yet; print the figures.

    Raises:
        RecipeError: the recipe is wrong, or has no `collect` section.
        CollectError: an option of --budget without it.
        AlignError: as of `align.feedback.collect.collect` and `align.feedback.budget.choose_items`.
    """
    from align.recipe import RecipeError, load_recipe
    from align.recipe.check import collect_problems
    from align.recipe.collect_section import BEFORE, NEWEST

    recipe = load_recipe(args.recipe, args.overrides)
    if recipe.collect is None:
        raise RecipeError(["has no section 'collect', which names prompts and who replies"], args.recipe)
    if problems := collect_problems(recipe):
        raise RecipeError(problems, args.recipe)
    if of_rounds := [one.model for one in recipe.collect.sources if one.model in (NEWEST, BEFORE)]:
        told = f"collect.sources: '{of_rounds[0]}' is a policy of a round, and `align run` collects for its rounds"
        raise RecipeError([f"{told}; name a stage, a run or a model to collect by itself"], args.recipe)
    from align.feedback.collect import ITEMS, collect

    out = typed_path(args.out or Path(recipe.output_dir) / "collect")
    _require_budget(args)
    before = " (collected before)" if (out / ITEMS).exists() else ""
    found = collect(recipe, recipe.collect, out)
    chosen = _choose(args, recipe, out) if args.budget else None
    if args.json:
        say(json.dumps(found | ({"chosen": chosen} if chosen else {}), ensure_ascii=False, indent=2))
        return
    for line in (*_collected(found), f"{found['items']} items with {found['replies']} replies: {out / ITEMS}{before}"):
        say(line)
    for line in _expected(chosen) if chosen else ():
        say(line)
    say(f"have them judged: align annotate {chosen['file'] if chosen else out / ITEMS} (or align judge)")


def _require_budget(args: argparse.Namespace) -> None:
    from align.feedback.collect import CollectError

    options = {"--choose": args.choose, "--reward": args.reward, "--except": args.without, "--to": args.to}
    alone = next((name for name, given in options.items() if given and not args.budget), None)
    if alone is not None:
        raise CollectError(f"{alone} says how pairs are chosen: add --budget N, how many")
    if args.to and args.to.suffix != ".jsonl":
        raise CollectError(f"--to {args.to}: name a file that ends in .jsonl (its summary ends in .json)")


def _choose(args: argparse.Namespace, recipe: Any, out: Path) -> dict[str, Any]:
    from align.feedback.budget import choose_items
    from align.feedback.collect import ITEMS
    from align.feedback.items import load_items
    from align.recipe.lineage import has_model, stage_dir
    from align.recipe.registry import REWARD_STAGES

    how, file = args.choose or "random", typed_path(args.to or out / "to_judge.jsonl")
    own = [str(stage_dir(recipe, stage)) for stage in REWARD_STAGES[::-1] if has_model(recipe, stage)]
    rewards = args.reward or (own[:1] if how == "uncertain" else [])
    without = [item for path in args.without for item in load_items(path)]
    items = load_items(out / ITEMS)
    found = choose_items(items, args.budget, how, file, rewards=rewards, without=without, seed=recipe.seed)
    return found | {"file": str(file)}


def _collected(found: dict[str, Any]) -> Iterator[str]:
    """How the prompts were drawn, and what was left out."""
    drawn = found["prompts"]
    if drawn["tags"]:
        said = f"{drawn['tags']} of their {drawn['tags of all']} tags occur, {drawn['tags a prompt']:.2f} a prompt"
        said = f"{said} ({drawn['tags a prompt of all']:.2f} among all)"
    else:
        said = "at random, since no row has tags or a category"
    yield f"{drawn['drawn']} of {drawn['fitting']} prompts drawn: {said}"
    for what, number in found["dropped"].items():
        yield f"{number} {what} left out"


def _expected(chosen: dict[str, Any]) -> Iterator[str]:
    """What was chosen, and what it is expected to bring."""
    from align.evaluation.table import percent

    by = f" by {', '.join(chosen['rewards'])}" if chosen["choose"] == "uncertain" else ""
    yield f"{chosen['pairs']} of {chosen['of']} pairs chosen ({chosen['choose']}{by}): {chosen['file']}"
    if told := chosen["expected"]:
        error = "" if told["nats_error"] is None else f" ± {told['nats_error']:.2g}"
        yield (
            f"  information  {told['nats']:.3g}{error} nats at most about which member is right; as many at random "
            f"{told['nats_random']:.3g}"
        )
        yield (
            f"  surprises    {percent(told['surprises'])} ± {percent(told['surprises_error'])} of the judgments go "
            f"against what the members say now; at random {percent(told['surprises_random'])}"
        )
    if curve := chosen["accuracy"]:
        yield (
            f"  accuracy     {100 * curve['gain']:+.2f} ± {100 * curve['gain_error']:.2f} points by as many more pairs "
            f"like the {curve['seen']} it learned from (the slope of its own curve)"
        )
