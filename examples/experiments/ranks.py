"""What more ranks change: weights beside one process's, a rank that is killed, going on with as many ranks or others.

    python examples/experiments/ranks.py FOLDER
    python examples/experiments/ranks.py FOLDER --layouts ddp-2 fsdp2-2 --stages sft ppo

Four steps of SFT, a reward model, DPO and PPO, and a round of rejection sampling (`ranks_trained.py`), on one process
and on gloo ranks under DDP and FSDP2. SFT, DPO and PPO are in float64 (the norms too, which transformers computes in
float32; TRL takes DPO's log-probabilities in float32), the others as recipes have them, in float32. PPO's replies are
the likeliest tokens, which no rank's seed changes. Then the last rank is killed, and copies of what is left go on with
as many ranks, and with another number. Launches that are finished are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

STAGES = ("sft", "rm", "dpo", "ppo", "rejection")
LAYOUTS = ("ddp-2", "fsdp2-2", "ddp-4", "fsdp2-4")
OTHERS = {"ddp-2": "fsdp2-4", "fsdp2-2": "one", "ddp-4": "one", "fsdp2-4": "fsdp2-2"}
ROOT, PROGRAM = Path(__file__).resolve().parents[2], Path(__file__).resolve().with_name("ranks_trained.py")
ALIGN = "import sys; from align.cli import main; sys.exit(main())"
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
HEAD = ("stage", "ranks", "beside one", "killed: all ended after, exit code", "goes on with as many", "with others")


def launched(layout: str, stage: str, out: Path, kill: bool = False) -> dict[str, Any]:
    """Ranks of a layout (`one`, `ddp-2`, …) train a stage in `out`: exit code, what was said of it, and how many
    seconds after the kill all had ended.

    Raises:
        RuntimeError: they failed, and no rank was to be killed.
    """
    if (file := out / f"launch-{layout}.json").is_file():
        return json.loads(file.read_text())
    out.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    env |= {"PYTHONPATH": str(ROOT)} | (FSDP2 if layout.startswith("fsdp2") else {})
    words = [str(PROGRAM), str(out), stage, *(["--kill"] if kill else [])]
    ranks = ["-c", ALIGN, "launch", "--config_file", "ddp", "--num_processes", layout[-1]]
    command = [sys.executable, *([] if layout == "one" else ranks), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    if done.returncode and not kill:
        raise RuntimeError(f"{layout} {stage} in {out} failed:\n{done.stderr[-3000:]}")
    said = [line for line in done.stderr.splitlines() if line.startswith("error:") or "is kept" in line]
    seconds = time.time() - float((out / "killed").read_text()) if kill else 0.0
    found = {"code": done.returncode, "seconds": round(seconds, 1), "said": said}
    file.write_text(json.dumps(found))
    return found


def beside(out: Path, other: Path) -> str:
    """The largest difference of two runs' weights."""
    one, two = (torch.load(folder / "weights.pt", weights_only=True) for folder in (out, other))
    assert one.keys() == two.keys()
    largest = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    return "equal to the bit" if largest == 0 else f"{largest:.0e}"


def row(folder: Path, layout: str, stage: str) -> list[str]:
    """A line of the table."""
    place = folder / stage
    one, whole, killed = place / "one", place / layout / "whole", place / layout / "killed"
    launched("one", stage, one)
    launched(layout, stage, whole)
    end = launched(layout, stage, killed, kill=True)
    gone_on = {}
    for name in (layout, OTHERS[layout]):
        copy = place / layout / f"on-{name}"
        if not copy.exists():
            shutil.copytree(killed, copy, ignore=shutil.ignore_patterns("launch-*", "killed"))
        launched(name, stage, copy)
        gone_on[name] = beside(copy, whole)
    print(f"{stage} {layout}: " + " | ".join(end["said"]), file=sys.stderr, flush=True)
    others = f"{gone_on[OTHERS[layout]]} ({OTHERS[layout]})"
    return [stage, layout, beside(whole, one), f"{end['seconds']} s, {end['code']}", gone_on[layout], others]


def main() -> None:
    """Print the table, a line as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the runs; what is there is not made again")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    args = parser.parse_args()
    print(f"| {' | '.join(HEAD)} |\n{'|---' * len(HEAD)}|", flush=True)
    for layout in args.layouts:
        for stage in args.stages:
            print(f"| {' | '.join(row(args.folder.resolve(), layout, stage))} |", flush=True)


if __name__ == "__main__":
    main()
