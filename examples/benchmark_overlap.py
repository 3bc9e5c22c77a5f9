"""Seconds an iteration of PPO with a vLLM server, sampling in turn with the update and beside it.

    OMP_NUM_THREADS=1 python examples/benchmark_overlap.py RUN [--iterations 20] [--rounds 3] [key=value …]

RUN is a finished quickstart (its `sft` and `rm` are trained on; nothing in it is changed). Trainer and server have one
thread each, so on two cores each has its own. Both ways correct by `importance_sampling_correction: token`. A round
runs each way once, with a server of its own; an iteration is timed from one line of the log to the next, the median of
each run is taken, without its first two iterations, and the median over rounds is printed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from pathlib import Path

from align.runtime.json_files import read_objects

WAYS = {"in turn": False, "overlap": True}
TOLD = (
    "ppo.rollout.engine=vllm_server",
    "ppo.importance_sampling_correction=token",
    "ppo.critic_warmup_steps=4",
    "ppo.eval_data=[]",
    "ppo.save_steps=null",
)


def iteration_seconds(metrics: Path) -> dict[str, float]:
    """Medians over the iterations of a run but its first two: seconds of one, of its phases, and the staleness."""
    lines = [line for line in read_objects(metrics, "run it again") if "score/mean" in line]
    apart = [later["time"] - line["time"] for line, later in itertools.pairwise(lines[1:])]
    keys = ("seconds/rollout", "seconds/update", "seconds/sync", "engine/staleness")
    found = {"seconds": statistics.median(apart)}
    return found | {key: statistics.median(line[key] for line in lines[2:] if key in line) for key in keys}


def measure(run: str, iterations: int, told: list[str]) -> dict[str, dict[str, float]]:
    """One run each way."""
    from align.recipe import load_recipe
    from align.stages import run_ppo

    found = {}
    for name, overlap in WAYS.items():
        keys = [f"output_dir={run}", f"ppo.num_iterations={iterations}", f"ppo.rollout.overlap={str(overlap).lower()}"]
        recipe = load_recipe("quickstart", [*TOLD, *keys, *told])
        with tempfile.TemporaryDirectory() as folder:
            out_dir = Path(folder, "ppo")
            run_ppo.run_ppo(recipe, out_dir=out_dir)
            found[name] = iteration_seconds(out_dir / "metrics.jsonl")
        print(f"{name}:", ", ".join(f"{key} {value:.3g}" for key, value in found[name].items()), flush=True)
    return found


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Median seconds of an iteration each way, and how many times shorter overlap makes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="output_dir of a finished quickstart")
    parser.add_argument("told", nargs="*", metavar="key=value", help="changes of the recipe")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    rounds = [measure(options.run, options.iterations, options.told) for _ in range(options.rounds)]
    table = {name: statistics.median(found[name]["seconds"] for found in rounds) for name in WAYS}
    table["ratio"] = statistics.median(found["in turn"]["seconds"] / found["overlap"]["seconds"] for found in rounds)
    print(f"medians of {options.rounds} rounds:", ", ".join(f"{key} {value:.3g}" for key, value in table.items()))
    return table


if __name__ == "__main__":
    main()
