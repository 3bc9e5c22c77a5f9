"""The program as a user starts it, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.runs.launch import guarded

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PLAIN = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ALIGN_DEBUG")}
PLAIN |= {"OMP_NUM_THREADS": "1"}
INSTALLED = PLAIN | {"PYTHONPATH": str(ROOT)}  # stands for an installed package, which `-m` needs in another folder


def exit_code(work: Callable[[], Any], proceed: str = "x") -> int:
    """How the program would end if `work` were all it does."""
    with guarded(proceed=proceed) as ending:
        work()
    return ending.code


def heed_ctrl_c() -> None:
    """For `preexec_fn`: a suite that runs in the background of a shell has inherited that SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(
    *words: str | Path, cwd: Path = ROOT, env: dict[str, str] = PLAIN, **options: Any
) -> subprocess.CompletedProcess:
    """Run a command to its end; standard output and error are kept apart."""
    command = [str(word) for word in words]
    options = {"timeout": 240, **options}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, **options)


def align(*words: str | Path, cwd: Path = ROOT, **options: Any) -> subprocess.CompletedProcess:
    """`align WORDS`."""
    return run(sys.executable, "-m", "align.cli", *words, cwd=cwd, env=INSTALLED, **options)


def accelerate(*words: str | Path, cwd: Path = ROOT, env: dict[str, str] = PLAIN) -> subprocess.CompletedProcess:
    """`accelerate launch --cpu WORDS`."""
    return run(BIN / "accelerate", "launch", "--cpu", "--num_processes", "1", *words, cwd=cwd, env=env)


def on_two_ranks(*words: str | Path, cwd: Path = ROOT, env: dict[str, str] = PLAIN) -> subprocess.CompletedProcess:
    """`torchrun --nproc_per_node 2 WORDS`."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    return run(*launcher, *words, cwd=cwd, env=env)
