"""align chat RUN|MODEL: talk to a model at a terminal, or have a file of prompts answered.

RUN is a run's folder, of which the newest finished policy is meant (ppo, else rejection, sft, base); MODEL is a folder
or hub id of a model or of an adapter, which is put on its base. It is asked as it speaks: by ChatML where it was
trained so, else by its own chat template; one without turns completes what it is given.

With --against two models answer side by side, each in its own conversation, and what --reward says of each reply (by
default the run's own reward model) stands below it.

Lines are questions, or commands: /reset /undo /retry /save [FILE] /system TEXT /temperature X /help /quit. Ctrl-C ends
a reply, Ctrl-D leaves. Where standard input is no terminal every line is a question too.

With --prompts and --out every prompt of a file, in any format that can be read, is answered in JSON lines; the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from align.commands.options import positive
from align.runtime.paths import typed_path
from align.runtime.terminal import say

ENGINES = ("auto", "hf", "vllm")


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    parser = commands.add_parser("chat", help="talk to a model, or answer a file of prompts", description=__doc__)
    parser.set_defaults(work=chat_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="RUN|MODEL", help="a run's folder, or a model's folder or hub id")
    parser.add_argument("--against", metavar="STAGE|MODEL|RUN", help="a second model: a stage of the same run, or any")
    parser.add_argument("--reward", metavar="MODEL|RUN", help="a reward model that judges every reply")
    parser.add_argument("--system", metavar="TEXT", default="", help="the system turn")
    parser.add_argument("--prompts", metavar="FILE|hub:ID", help="answer these prompts instead; needs --out")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where their replies go, as JSON lines")
    parser.add_argument("--max-tokens", type=positive, default=512, metavar="N", help="of a reply (default 512)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="default 1; 0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="X", help="nucleus sampled from (default 1, all)")
    parser.add_argument("--seed", type=int, metavar="N", help="makes replies those of every time")
    parser.add_argument(
        "--engine", choices=ENGINES, default="auto", help="default auto: vLLM on a GPU where it is installed, else hf"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def chat_command(args: argparse.Namespace) -> None:
    """Chat, or answer the file.

    Raises:
        MissingFileError, ModelFileError, NotAPolicyError, TokenizerError: no such model, or none that can be talked to.
        ChatError, RolloutError: options that do not go together or are out of range, a prompt that is too long.
        DataError: prompts that cannot be read.
        RewardError: the reward failed.
    """
    from align.chat.conversation import ChatError
    from align.models.named import called, policy_at, reward_at, reward_of, run_of
    from align.recipe.registry import STAGES

    if (args.prompts is None) != (args.out is None):
        raise ChatError("--prompts and --out go together: the file of prompts, and where the replies go")
    paths = [policy_at(args.model)]
    if args.against is not None:
        of_stage = args.against in STAGES
        paths.append(policy_at(args.model, args.against) if of_stage else policy_at(args.against))
    reward_path = None if args.reward is None else reward_at(args.reward)
    if reward_path is None and args.against is not None and (run := run_of(paths[0])) is not None:
        reward_path = reward_of(run)
    if len(paths) > 1 and args.engine == "vllm":
        raise ChatError("vLLM holds one model in a process: leave --against out, or set --engine hf")
    engine = "hf" if len(paths) > 1 else args.engine
    names = [called(path) for path in paths]
    prompts = None if args.prompts is None else read_prompts(args.prompts, args.system)

    from rollouts.protocol import SamplingParams

    params = SamplingParams(
        temperature=args.temperature, top_p=args.top_p, max_new_tokens=args.max_tokens, seed=args.seed
    )
    from align.chat.session import Session
    from align.chat.speaker import Speaker
    from align.evaluation.scoring import best_device
    from align.runtime.memory import memory_errors
    from reward.sources import load_reward

    with ExitStack() as open_models, memory_errors("the chat"):
        speakers = []
        for path, name in zip(paths, names if len(set(names)) == len(names) else paths, strict=True):
            speaker = Speaker(path, name, engine=engine, temperature=args.temperature)
            speakers.append(open_models.enter_context(closing(speaker)))
        reward = None
        if reward_path is not None:
            reward = load_reward(reward_path, name=called(reward_path), device=best_device(), dtype="auto")
        if prompts is not None:
            _answer(args, speakers, reward, params, prompts)
            return
        from align.chat.screen import Screen

        screen = Screen([speaker.name for speaker in speakers])
        session = Session(speakers, reward, params, args.system, screen)
        if screen.asks:
            judge = "" if reward is None else f", judged by {reward.name}"
            screen.note(f"{' beside '.join(speaker.name for speaker in speakers)}{judge}; /help lists the commands")
        session.run()


def read_prompts(source: str, system: str) -> list[Any]:
    """The prompts of a file, each behind the system turn.

    Raises:
        DataError: none can be read.
    """
    from align.chat.batch import with_system
    from data_formats import EmptyDatasetError, Prompt, read

    found = read(source, Prompt)
    say(found.report.describe(), file=sys.stderr)
    if not found.records:
        raise EmptyDatasetError(f"no prompt is left in {source}")
    return with_system(found.records, system)


def _answer(args: argparse.Namespace, speakers: list[Any], reward: Any, params: Any, prompts: list[Any]) -> None:
    from align.chat.batch import answer_prompts
    from align.runs.progress import StageProgress

    out = typed_path(args.out)
    with StageProgress("prompts", len(prompts)) as progress:
        before = answer_prompts(speakers, reward, params, prompts, out, progress.update)
    known = f", {before} of them from before" if before else ""
    say(f"{out}: replies to {len(prompts)} prompts{known}")
