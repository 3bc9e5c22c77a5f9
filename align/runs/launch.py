"""What every way of starting the program shares: the environment, and how errors and Ctrl-C end it.

Telemetry: Hugging Face libraries report usage by default (TRL's trainers included; they honour the same switch). Every
start of this program sets HF_HUB_DISABLE_TELEMETRY=1 unless you have set it yourself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from data_formats.errors import AlignError


def prepare_environment(debug: bool = False) -> None:
    """Set the environment variables to be there before torch and transformers are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if debug:
        os.environ["ALIGN_DEBUG"] = "1"


def guarded(work: Callable[[], int | None], *, proceed: str) -> int:
    """Run `work` and turn how it ended into an exit code.

    Returns 0 (or what `work` returned), 1 after an AlignError (one message, no traceback; ALIGN_DEBUG=1
    shows it), 130 after Ctrl-C, with the command `proceed` that goes on from what is saved.
    """
    try:
        return work() or 0
    except AlignError as error:
        if os.environ.get("ALIGN_DEBUG", "0") not in ("", "0") and not isinstance(error, InterruptedError):
            raise
        if isinstance(error, InterruptedError):  # a stage that stopped cleanly at Ctrl-C
            print(f"{error}\nContinue with: {proceed}", file=sys.stderr)
            return 130
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; what is finished or saved is kept. Continue with: {proceed}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `align check … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run_entry(stages: Sequence[str], argv: Sequence[str], program: str) -> int:
    """What `align/{base,sft,rm,ppo}.py` do: run one stage of a recipe.

    Args:
        stages: the stages this entry can run; with more than one, `--stage` chooses (default the last).
        argv: RECIPE [key=value …] [--stage STAGE] [--fresh] [--debug].
        program: how the entry was started, for messages (`align/ppo.py`).
    """
    import argparse
    import shlex

    from align.runs.arguments import parse_with_overrides

    parser = argparse.ArgumentParser(prog=program, description=f"Run the {' or '.join(stages)} stage of a recipe.")
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a shipped recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, for example ppo.kl_coef=0.1")
    if len(stages) > 1:
        parser.add_argument("--stage", choices=stages, default=stages[-1], help=f"which stage (default {stages[-1]})")
    parser.add_argument("--fresh", action="store_true", help="start the stage anew instead of continuing it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parse_with_overrides(parser, argv)
    stage = args.stage if len(stages) > 1 else stages[0]
    prepare_environment(args.debug)

    def work() -> None:
        from align.recipe import load_recipe
        from align.recipe.check import require_ready

        recipe = load_recipe(args.recipe, args.overrides)
        require_ready(recipe, stage, shlex.join([args.recipe, *args.overrides]))
        from align.stages.chain import run_stage

        run_stage(recipe, stage, fresh=args.fresh)

    again = [item for item in argv if item != "--fresh"]
    return guarded(work, proceed=shlex.join(["accelerate", "launch", program, *again]))
