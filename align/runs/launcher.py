"""`accelerate launch` for schedulers: signals reach the ranks, and the ranks' exit code reaches the scheduler.

accelerate starts ranks by torchrun, or one process by itself. Alone, torchrun dies of SIGUSR1 and leaves its ranks
behind; to SIGTERM it passes on, gives ranks 30 seconds and kills them, while a step may take minutes; and whatever code
they end with, its own is 1, so no scheduler can tell a run that saved from one that failed. Here SIGTERM, SIGUSR1 and
Ctrl-C go to every rank of this node, which ends in its own time, and the exit code is theirs.

Everything else is accelerate's: its options, its config files, of which those of `recipes/accelerate` have names. What
only a node can know (`machine_rank`, and the first node's address) has to be on the command line, since accelerate's
files default to rank 0 everywhere, which waits for ever.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CalledProcessError
from types import FrameType

from align.recipe.errors import did_you_mean
from align.recipe.model_section import ModelSection
from align.recipe.shipped import recipes_folder
from align.runs.errors import LaunchError
from align.runs.interrupt import INTERRUPTED, REQUEUE, SCHEDULERS, Stopped, handling
from align.runtime.errors import MissingFileError
from align.runtime.terminal import say

PASSED_ON = (signal.SIGINT, *SCHEDULERS)
LEFT_TO_TORCHRUN = "SIGHUP,SIGQUIT"


def accelerate_configs() -> dict[str, Path]:
    """The shipped config files of accelerate, by name."""
    return {file.stem: file for file in sorted((recipes_folder() / "accelerate").glob("*.yaml"))}


def asked(switch: str) -> bool:
    """Whether the launcher set this switch of accelerate in the ranks' environment."""
    return os.environ.get(switch, "false").lower() in ("1", "true", "yes")


def refuse_settings_of_two_owners(model: ModelSection) -> None:
    """Precision and activation checkpointing are the recipe's, by which memory is planned and one process trains too.

    accelerate's `mixed_precision` would hold for the supervised stages and not for PPO, and its activation
    checkpointing would come on top of the model's own.

    Raises:
        LaunchError: the launcher asks for another precision than the recipe, or for activation checkpointing.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", model.mixed_precision):
        raise LaunchError(
            f"accelerate was launched with mixed_precision {precision}, and the recipe's model.mixed_precision is "
            f"{model.mixed_precision}: the recipe decides, so set it there and take it out of accelerate's config"
        )
    if asked("ACCELERATE_USE_FSDP") and asked("FSDP_ACTIVATION_CHECKPOINTING"):
        raise LaunchError(
            "accelerate was launched with fsdp_activation_checkpointing: the recipe decides, so set "
            "model.gradient_checkpointing there and take it out of accelerate's config"
        )


def launch(words: Sequence[str]) -> int:
    """Start the ranks of this node as `accelerate launch WORDS` does, wait for them, and return their exit code.

    Raises:
        MissingFileError: no such config file, and none is shipped under that name.
        LaunchError: what accelerate refuses; several nodes without this one's rank or the first one's address.
        Stopped, KeyboardInterrupt: a signal, before there was a rank.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    args = launch_command_parser().parse_args(list(words))
    _complete(args)
    args.quiet = False  # else one process that failed ends as 1
    args.signals_to_handle = LEFT_TO_TORCHRUN
    if os.environ.get("ALIGN_DEBUG", "0") in ("", "0"):
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks have said it
    with _passing_on() as passed:
        try:
            launch_command(args)
        except ChildFailedError as failed:
            return exit_code({rank: failure.exitcode for rank, failure in failed.failures.items()}, passed)
        except CalledProcessError as failed:
            return exit_code({0: failed.returncode}, passed)
        except SignalException as ended:
            return 128 + ended.sigval
        except ValueError as error:
            raise LaunchError(f"accelerate: {error}") from error
    return 0


def exit_code(ended: dict[int, int], passed: set[int]) -> int:
    """The one code of a node whose ranks ended with `ended`, not 0: that of a stop that was asked for, else the first.

    Args:
        ended: code by rank, minus the number of the signal that killed it.
        passed: the signals that were passed on. A rank that died of one had not begun: it stopped. A rank that stopped
            without one was ended by torchrun, after another that failed, or else was sent a signal by somebody else.
    """
    stopped = {-number: REQUEUE if number in SCHEDULERS else INTERRUPTED for number in passed}
    codes = [stopped.get(code, code) for code in ended.values()]
    for code in (REQUEUE, INTERRUPTED):
        if code in codes and code in stopped.values():
            return code
    failed = [code for code in codes if code not in (REQUEUE, INTERRUPTED)] or codes
    for rank, code in ended.items():
        if code < 0:
            say(f"error: rank {rank} was killed by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    return failed[0] if failed[0] > 0 else 128 - failed[0]


def _complete(args: argparse.Namespace) -> None:
    """A shipped config by its name, a process for every card, and nothing left open that only this node knows."""
    from accelerate.commands.config.config_args import load_config_from_file

    config = None
    if args.config_file is not None:
        args.config_file = str(_config_file(args.config_file))
        try:
            config = load_config_from_file(args.config_file)
        except (ValueError, TypeError, AttributeError) as error:
            raise LaunchError(f"{args.config_file}: not a config file of accelerate: {error}") from error
    nodes = args.num_machines or getattr(config, "num_machines", 1)
    if nodes > 1:
        address = args.main_process_ip or getattr(config, "main_process_ip", None)
        missing = [
            *(["--machine_rank, 0 on the first"] if args.machine_rank is None else []),
            *(["--main_process_ip, the first node's address"] if address is None else []),
        ]
        if missing:
            raise LaunchError(f"every one of {nodes} nodes needs {' and '.join(missing)}")
    if args.num_processes is None and getattr(config, "num_processes", 1) == -1:
        args.num_processes = nodes * _cards()


def _config_file(name: str) -> Path:
    shipped = accelerate_configs()
    if Path(name).is_file():
        return Path(name)
    if name not in shipped:
        near = did_you_mean(name, shipped)
        hint = f"did you mean '{near}'? " if near else ""
        raise MissingFileError(f"{name}: no such config file; {hint}shipped ones are {', '.join(shipped)}")
    return shipped[name]


def _cards() -> int:
    import torch

    found = torch.cuda.device_count()
    if not found:
        raise LaunchError("this machine has no card to start a process for; say how many with --num_processes")
    return found


@contextmanager
def _passing_on() -> Iterator[set[int]]:
    """Signals go to the ranks, this process's children, which decide; gives the set of those that came."""
    import psutil

    passed: set[int] = set()

    def handle(number: int, frame: FrameType | None) -> None:
        ranks = psutil.Process().children()
        if not ranks:
            raise Stopped("stopped before the ranks began", REQUEUE if number in SCHEDULERS else INTERRUPTED)
        passed.add(number)
        for rank in ranks:
            try:
                rank.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    with handling(PASSED_ON, handle):
        yield passed
