"""What `align scale` predicts of PPO on this machine, beside what was measured: another size of model, more ranks.

    python examples/experiments/growth_measured.py sizes FOLDER      a probe at one size, a run at another one
    python examples/experiments/growth_measured.py ranks FOLDER      1, 2 and 4 gloo ranks beside their simulation

Runs are PPO on Qwen2s of random weights with a reward model, every reply 48 tokens; each rank has one thread. Their
phases are counted in seconds that the first rank's process computed, which other work on the machine disturbs less than
a clock. Of `ranks`, what pieces take is fitted to two runs of one rank (8 and 32 replies: seconds a reply, and the
rest), averaging is measured alone, and ranks share the machine's cores: where there are more of them, each gets a part
of one. A finished run is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from align.plan.predict import ppo_models
from align.recipe import load_recipe
from align.runtime.json_files import read_objects
from align.scale import efficiency_of, read_probe
from align.scale.probe import PARTS, WARM
from align.scale.schedule import Costs, run

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"tiny": (128, 4), "small": (256, 4), "large": (384, 6)}  # width, layers
RANKED = "tiny"  # of the runs on several ranks
PROBES = ((("small",), "large"), (("large",), "small"), (("tiny", "small"), "large"))
ITERATIONS, REPLY, STEPS = 4, 48, 2
RECIPE = """name: grown
output_dir: {out}
model: {{path: {model}}}
ppo: {{data: [{data}], init_from: {model}, reward_from: {reward}, critic_from: {reward}, num_iterations: {iterations}, \
rollout_batch_size: {prompts}, num_mini_batches: 2, critic_warmup_steps: 0, log_samples: 0, rollout: {{engine: hf, \
num_generations: 2, max_prompt_length: 64, max_completion_length: {reply}, min_completion_length: {reply}}}}}
"""


def make(folder: Path, size: str) -> None:
    """A model, a reward model and prompts, where they are not there yet."""
    if (folder / size / "reward").is_dir():
        return
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from align.models.tokenizer import train_tokenizer
    from reward.model import RewardModel

    width, layers = SIZES[size]
    shape = {"vocab_size": 2048, "hidden_size": width, "intermediate_size": width * 11 // 4}
    shape |= {"num_hidden_layers": layers, "num_attention_heads": width // 64, "num_key_value_heads": width // 128}
    config = Qwen2Config(**shape, bos_token_id=None, eos_token_id=2)
    torch.manual_seed(0)
    model, tokenizer = Qwen2ForCausalLM(config), train_tokenizer([], 259)
    model.save_pretrained(folder / size / "model")
    RewardModel(model.model).save_pretrained(folder / size / "reward")
    for name in ("model", "reward"):
        tokenizer.save_pretrained(folder / size / name)
    rows = [json.dumps({"prompt": f"{number:02} " + "so it goes "[:11]}) + "\n" for number in range(64)]
    (folder / "prompts.jsonl").write_text("".join(rows))


def measured(folder: Path, size: str, prompts: int, ranks: int) -> Path:
    """The output folder of a finished run."""
    out = folder / f"{size}-{prompts}-{ranks}"
    if (out / "ppo" / "summary.json").is_file():
        return out
    make(folder, size)
    file = folder / f"{out.name}.yaml"
    models = {"model": folder / size / "model", "reward": folder / size / "reward", "data": folder / "prompts.jsonl"}
    file.write_text(RECIPE.format(out=out, iterations=ITERATIONS, prompts=prompts, reply=REPLY, **models))
    _launch(ranks, __file__, "train", str(file))
    return out


def train(file: str) -> None:
    """A rank of `measured`."""
    from types import SimpleNamespace

    from align.cli import run_entry
    from align.trainers.ppo import metrics

    metrics.time = SimpleNamespace(perf_counter=time.process_time)  # what `Stopwatch` reads
    sys.exit(run_entry("ppo", [file, "--fresh"]))


def _launch(ranks: int, *words: str) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    done = subprocess.run([sys.executable, *torchrun, *words], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def seconds(out: Path) -> dict[str, float]:
    """Medians of a run by phase, its first iterations left out."""
    rows = [row for row in read_objects(out / "ppo" / "metrics.jsonl", "run it again") if "seconds/update" in row]
    return {part: statistics.median(row[f"seconds/{part}"] for row in rows[WARM:]) for part in PARTS}


def averaging(ranks: int, size: int) -> float:
    """Seconds that each of so many gloo ranks computes to average so many bytes."""
    return float(_launch(ranks, __file__, "average", str(size)).split()[-1])


def average(size: int) -> None:
    """A rank of `averaging`."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    gradients, taken = torch.zeros(size // 4), []
    for _ in range(7):
        began = time.process_time()
        distributed.all_reduce(gradients)
        taken.append(time.process_time() - began)
    if distributed.get_rank() == 0:
        print(statistics.median(taken[WARM:]))
    distributed.destroy_process_group()


def compare_sizes(folder: Path) -> str:
    """What probes of one or two sizes of model predict of another."""
    runs = {size: measured(folder, size, prompts=8, ranks=1) for size in SIZES}
    probes = {size: read_probe(out) for size, out in runs.items()}
    rows = ["| probe → run | phase | predicted, s | measured, s | off |", "|---" * 5 + "|"]
    for sizes, there in PROBES:
        reached = efficiency_of([probes[size] for size in sizes])
        print(f"{' and '.join(sizes)}: {reached.words}")
        told, real = probes[there].parts(reached), seconds(runs[there])
        for part in (*PARTS, "all"):
            one, other = (sum(each.values()) if part == "all" else each[part] for each in (told, real))
            name = f"{' and '.join(sizes)} → {there}"
            rows.append(f"| {name} | {part} | {one:.2f} | {other:.2f} | {one / other - 1:+.0%} |")
    return "\n".join(rows)


def compare_ranks(folder: Path) -> str:
    """Runs of one, two and four ranks beside the simulation of their schedule on this machine's cores."""
    few, many = (seconds(measured(folder, RANKED, prompts, 1)) for prompts in (4, 16))
    kept = folder / "averaging.json"
    if not kept.is_file():
        recipe = load_recipe(folder / f"{RANKED}-16-1.yaml", world_size=1)
        size = sum(model.gradient_bytes for model in ppo_models(recipe).trained)
        kept.write_text(json.dumps({ranks: averaging(ranks, size) for ranks in (2, 4)}))
    taken = {1: 0.0} | {int(ranks): value for ranks, value in json.loads(kept.read_text()).items()}
    cores = len(os.sched_getaffinity(0))

    def fitted(part: str, replies: int) -> float:
        each = (many[part] - few[part]) / (32 - 8)
        return few[part] + each * (replies - 8)

    rows = ["| ranks | phase | simulated, s | measured, s | off |", "|---" * 5 + "|"]
    for ranks in (1, 2, 4):
        costs = Costs(
            rollout=lambda replies: fitted("rollout", len(replies)),
            score=lambda replies, _: fitted("score", replies),
            experience=lambda replies, _: fitted("experience", replies),
            update=lambda replies, _: fitted("update", replies),
            averaging=lambda ranks: taken[ranks],
            push=0.0,
            steps=STEPS,
            prompt=0,
            times=2,
        )
        found = run(costs, [[REPLY] * 32] * 3, ranks, cores=cores)
        real = seconds(measured(folder, RANKED, 16, ranks))
        told = found.phases | {"update": found.phases["update"] + found.phases["averaging"]}  # as it is logged
        shared = max(1.0, ranks / cores)  # what computed a second had a core for a part of it
        for part in (*PARTS, "all"):
            one = found.seconds if part == "all" else told[part]
            other = shared * (sum(real.values()) if part == "all" else real[part])
            rows.append(f"| {ranks} | {part} | {one:.2f} | {other:.2f} | {one / other - 1:+.0%} |")
    return "\n".join(rows)


def main(argv: list[str] | None = None) -> None:
    """As the words say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sizes", "ranks", "average", "train"))
    parser.add_argument("where", help="folder of the runs")
    options = parser.parse_args(argv)
    if options.what == "average":
        average(int(options.where))
        return
    if options.what == "train":
        train(options.where)
    made = {"sizes": lambda: compare_sizes(folder), "ranks": lambda: compare_ranks(folder)}
    folder = Path(options.where).resolve()
    print(made[options.what]())


if __name__ == "__main__":
    main()
