"""The judges that a command line names: the options of all commands in which replies are judged, and what they mean."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.commands.contestants import ContestError, alias, file_name, require_different
from align.runtime import files
from align.runtime.errors import AlignError
from align.runtime.paths import typed_path
from align.runtime.secrets import shown_url

SPENT = {
    "cached": "answers from before",
    "unread": "answers that could not be read",
    "refused": "questions refused",
    "disagreed": "pairs on which the two orders disagree (ties)",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A judge that was named; the judge itself may hold a model, and is made when it is wanted.

    Attributes:
        settings: what its judgments depend on.
        ready: the judge, where it costs nothing to hold.
    """

    name: str
    settings: dict[str, Any]
    word: str = ""
    ready: Any = None

    def judge(self, args: argparse.Namespace, folder: Path) -> Any:
        """The judge itself.

        Args:
            args: with `batch_size` and `dtype`, of a model.
            folder: where the answers of a language model that a recipe names are kept.
        """
        from align.evaluation.scoring import best_device
        from align.serving.named import named_judge

        how = {"batch_size": args.batch_size, "device": best_device(), "dtype": args.dtype}
        return self.ready or named_judge(self.word, folder=folder, **how)


def add_judges(parser: argparse.ArgumentParser) -> None:
    """The options that name judges."""
    parser.add_argument("--judge", metavar="[NAME=]JUDGE", action="append", default=[], help="who judges; repeatable")
    parser.add_argument("--judge-url", metavar="URL", help="the endpoint of a language model that judges")
    parser.add_argument("--judge-model", metavar="NAME", help="what the endpoint calls that model")
    parser.add_argument("--rubric", metavar="FILE", help="what it is to look at (default: a text of ours)")
    parser.add_argument("--judge-key-env", metavar="VAR", help="environment variable with the endpoint's key")


def require_url(args: argparse.Namespace) -> None:
    """Raises ContestError for an option of --judge-url that would do nothing."""
    for name, value in (("--rubric", args.rubric), ("--judge-key-env", args.judge_key_env)):
        if value and not args.judge_url:
            raise ContestError(f"{name} is for --judge-url: give that too, or leave {name} out")


def spent(usage: Mapping[str, int]) -> str:
    """What was asked of a judge that is paid for, in words; empty for others."""
    return ", ".join(f"{value} {SPENT.get(key, key.replace('_', ' '))}" for key, value in usage.items() if value)


def named_judges(args: argparse.Namespace, answers: Path) -> list[Wanted]:
    """The judges that are named; those that hold no model are made, and of the others it is known that they are there.

    Args:
        args: with the options of `add_judges`, `dtype` and `seed`.
        answers: where the answers of the language model of `--judge-url` are kept.

    Raises:
        ContestError: none is named, or two alike.
        MissingFileError, ModelFileError, RecipeError, UserCodeError, DataError: nothing there, or torn.
    """
    from align.models.named import called, reward_at
    from align.serving.named import check_judge, reward_stamp

    found = []
    for name, word in map(alias, args.judge):
        ready = check_judge(word)
        settings = {"judge": word, "its files": reward_stamp(word), "dtype": args.dtype}
        if name is None and ready is not None:
            name = ready.name
        elif name is None:
            name = file_name(called(reward_at(word)) if typed_path(word).is_dir() else word)
        found.append(Wanted(name, settings, word, ready))
    if args.judge_url or args.judge_model:
        if not (args.judge_url and args.judge_model):
            raise ContestError("--judge-url and --judge-model go together: the endpoint, and what it calls the model")
        found.append(_language_model(args, answers))
    if not found:
        raise ContestError("say who judges: --judge with a reward, a function or people's rankings, or --judge-url")
    require_different("judge", [one.name for one in found])
    return found


def _language_model(args: argparse.Namespace, answers: Path) -> Wanted:
    from reward.judges.llm import LLMJudge

    if args.judge_key_env and not os.environ.get(args.judge_key_env, "").strip():
        raise ContestError(
            f"--judge-key-env: the environment variable {args.judge_key_env} is not set: set it to the key"
        )
    try:
        judge = LLMJudge(
            args.judge_url,
            args.judge_model,
            rubric=args.rubric,
            api_key_env=args.judge_key_env,
            cache=answers,
            seed=args.seed,
        )
    except AlignError:
        raise
    except ValueError as error:
        tunnel = "a tunnel to this machine, or a recipe's judge with insecure: true"
        raise ContestError(str(error).replace("or insecure", tunnel)) from error
    settings = {"url": shown_url(args.judge_url), "model": args.judge_model, "seed": args.seed}
    rubric = [] if args.rubric is None else files.stamp(args.rubric)
    return Wanted(judge.name, settings | {"rubric": rubric}, ready=judge)
