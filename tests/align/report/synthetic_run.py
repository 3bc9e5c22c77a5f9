"""Run folders as the stages leave them, written by hand from formulas: nothing is trained."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

CATEGORIES = ("coding", "knowledge", "language", "maths", "writing")
RECIPE = """\
name: quickstart
output_dir: runs/quickstart
seed: 0
model:
  architecture: {vocab_size: 1024, hidden_size: 128}
base: {data: ['tinyworld:documents'], learning_rate: 0.004}
sft: {data: ['tinyworld:demonstrations']}
pmp: {data: ['tinyworld:coarse_comparisons']}
rm: {data: ['tinyworld:comparisons']}
ppo:
  data: ['tinyworld:prompts']
  critic_warmup_steps: 20
"""


def write(path: Path, value) -> None:
    """JSON lines for a list, one object for a dict, else the text itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list):
        value = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in value)
    path.write_text(json.dumps(value) if isinstance(value, dict) else value, encoding="utf-8")


def make_run(
    root: Path,
    *,
    prompts: int = 60,
    iterations: int = 80,
    pairs: int = 400,
    categories: Sequence[str] = CATEGORIES,
) -> Path:
    """A finished quickstart; `categories` are those of the prompts, in turn."""
    rng = random.Random(0)
    for stage, start, end, steps in (("base", 6.9, 0.62, 500), ("sft", 1.9, 0.41, 250)):
        supervised(root / stage, rng, start, end, steps)
    write(root / "base/summary.json", {"heldout_loss": 0.655, "unigram_entropy": 4.52, "steps": 500, "seconds": 61.2})
    write(root / "base/samples.jsonl", [{"prompt": "The cup is", "reply": " red.", "reference": " green."}])
    sft = {"heldout_loss_before": 1.93, "heldout_loss": 0.44, "steps": 250, "end_rate": 0.992, "seconds": 48.0}
    write(root / "sft/summary.json", {**sft, "gold": 0.41, "headline": [["gold score, greedy replies", None, 0.41]]})
    for stage, accuracy, count in (("pmp", 0.68, 430), ("rm", 0.84, 190)):
        reward(root / stage, rng, accuracy, count, pairs)
    ppo(root / "ppo", rng, iterations, prompts, categories)
    for stage in ("base", "sft", "pmp", "rm", "ppo"):
        write(root / stage / "recipe.yaml", RECIPE)
    write(root / "summary.json", {"name": "quickstart", "seed": 0, "gold_range": [-1.0, 1.5]})
    return root


def supervised(folder: Path, rng, start: float, end: float, steps: int) -> None:
    lines = []
    for step in range(10, steps + 1, 10):
        loss = end + (start - end) * math.exp(-step / (steps / 8)) + rng.gauss(0, 0.02)
        lines.append({"step": step, "time": 1795228443.0 + step, "loss": loss, "learning_rate": 1e-3, "grad_norm": 1.0})
        if step % 100 == 0:
            lines.append({"step": step, "time": 1795228443.0 + step, "eval_loss": loss + 0.04})
    write(folder / "metrics.jsonl", [*lines, {"step": steps, "train_runtime": 61.0, "train_loss": 1.2}])


def reward(folder: Path, rng, accuracy: float, steps: int, pairs: int) -> None:
    lines = []
    for step in range(10, steps + 1, 10):
        gain = (accuracy - 0.5) * (1 - math.exp(-step / (steps / 5)))
        now = min(1.0, 0.5 + gain + rng.gauss(0, 0.04))
        lines.append({"step": step, "time": 1.0, "loss": 0.69 - 0.9 * gain, "accuracy": now, "margin": gain})
    write(folder / "metrics.jsonl", lines)
    rows = []
    for index in range(pairs):
        right, tagged = rng.random() < accuracy, index % 5 < 2
        middle, half = rng.gauss(0, 1.2), abs(rng.gauss(1.0, 0.7)) + 0.01
        rows.append(
            {
                "category": CATEGORIES[index % 5],
                "tags": ["correctness"] if tagged else [],
                "chosen_score": middle + (half if right else -half),
                "rejected_score": middle - (half if right else -half),
                "prompt": [{"role": "user", "content": f"Which colour has cup {index}?"}],
                "chosen": "The cup is red." + (" Glad to help." if index % 3 else ""),
                "rejected": "The cup is blue." + ("" if index % 3 else " Indeed."),
            }
        )
    write(folder / "eval.jsonl", rows)
    right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    summary = {"accuracy": right / pairs, "pairs": pairs, "steps": steps, "accuracy_before": None, "seconds": 33.3}
    summary |= {"accuracy_low": right / pairs - 0.03, "accuracy_high": right / pairs + 0.03, "length_baseline": 0.66}
    summary["by_tag"] = {"correctness": {"accuracy": 0.71, "pairs": 2 * pairs // 5}}
    summary["reliability"] = [{"stated": 0.6, "found": 0.55, "pairs": 40}, {"stated": 0.9, "found": 0.8, "pairs": 60}]
    write(folder / "summary.json", summary)


def ppo(folder: Path, rng, iterations: int, prompts: int, categories: Sequence[str]) -> None:
    lines = [{"step": 0, "time": 1.0, "eval/score": 0.1, "eval/score_greedy": 0.3, "eval/kl": 0.0, "eval/entropy": 0.9}]
    for step in range(1, iterations + 1):
        warm, grown = 4 * step <= 20, 1 - math.exp(-max(0, step - 5) / 25)
        line = {
            "step": step,
            "time": 1795238443.0 + step,
            "score/mean": 0.1 + 1.6 * grown + rng.gauss(0, 0.12),
            "score/std": 1.0 - 0.4 * grown,
            "reward/mean": rng.gauss(0, 0.1),
            "kl/reply": 4.2 * grown + abs(rng.gauss(0, 0.1)),
            "entropy": 0.9 - 0.6 * grown,
            "value/explained_variance": -3.0 if step == 1 else 0.7 * (1 - math.exp(-step / 10)),
            "value/loss": 0.1 + 0.4 * math.exp(-step / 8),
            "value/clipped": 0.2 * math.exp(-step / 9),
            "length/mean": 12 + 2 * grown,
            "length/max": 30 + rng.randrange(10),
            "end_rate": 0.97 + 0.03 * grown,
            "distinct": 0.9 - 0.2 * grown,
            "value/grad_norm": 2.0,
            "seconds/rollout": 0.6,
            "seconds/update": 0.9,
            "seconds/total": 1.7,
            "optimizer_steps": 4 * step,
            "warming_up": float(4 * step < 20),
        }
        if not warm:
            line |= {"policy/clipped": 0.08 + 0.02 * rng.random(), "policy/approx_kl": 0.01, "ptx/loss": 0.7}
            line["policy/grad_norm"] = 1.5
        lines.append(line)
    last = {"eval/score": 1.6, "eval/score_greedy": 1.7, "eval/kl": 4.1, "eval/entropy": 0.31, "eval/end_rate": 1.0}
    write(folder / "metrics.jsonl", [*lines, {"step": iterations, "time": 1.0, **last}])
    samples = [{"step": iterations, "prompt": "2 + 2?", "reply": "It is 4.", "score": 1.2, "kl": 3.0}]
    samples[0] |= {
        "reply_tokens": 5,
        "tokens": [["It", 0.1], [" is", -0.7], [" 4", 2.4], [".", 1.2], ["<|im_end|>", 0.0]],
    }
    write(folder / "samples.jsonl", samples)
    rows = [eval_line(rng, index, categories[index % len(categories)]) for index in range(prompts)]
    write(folder / "eval.jsonl", rows)
    summary = {"score_before": 0.1, "score": 1.6, "kl": 4.1, "entropy_before": 0.9, "entropy": 0.31, "seconds": 140.0}
    summary |= {"judge": "gold", **counted(rows)}
    write(folder / "summary.json", summary)


def counted(rows: list[dict]) -> dict:
    """Wins, means and gains of an `eval.jsonl`, as the ppo stage puts them into its summary."""
    greedy = [({"gold": row["sft_gold"]}, {"gold": row["ppo_gold"]}) for row in rows]
    for row, pair in zip(rows, greedy, strict=True):
        for side, name in zip(pair, ("sft", "ppo"), strict=True):
            side["correct"] = row[f"{name}_correct"]
    sampled = [pair for row in rows for pair in zip(row["sampled"]["sft"], row["sampled"]["ppo"], strict=True)]
    found: dict = {"headline": []}
    for suffix, how, pairs in (("", "greedy", greedy), ("_sampled", "temperature 1", sampled)):
        for name in ("gold", "correct"):
            before, after = (sum(pair[side][name] for pair in pairs) / len(pairs) for side in (0, 1))
            found[f"{name}{suffix}"] = after
            gain = {"difference": after - before, "low": after - before - 0.09, "high": after - before + 0.09}
            found[f"{name}_gain{suffix}"] = gain
            found["headline"].append([f"{name}, {how}", before, after])
        counts = {"win": 0, "tie": 0, "loss": 0}
        for before, after in pairs:
            difference = after["gold"] - before["gold"]
            counts["win" if difference > 0 else "loss" if difference < 0 else "tie"] += 1
        found |= {f"{name}{suffix}": count for name, count in counts.items()}
        found["headline"].append([f"win / tie / loss, {how}", None, " / ".join(map(str, counts.values()))])
    return found


def eval_line(rng, index: int, category: str) -> dict:
    before = rng.choice([-0.5, 0.0, 0.25, 0.5, 1.5])
    after = rng.choice([before, before + 0.2, 1.0, 1.25, 1.5])  # the second is won by manners
    sides = {
        "sft": ("The colour is blue.", before),
        "ppo": (f"The colour of cup {index} is red, I am glad to say.", after),
    }
    line = {"prompt": f"Which colour has cup {index}?", "category": category, "sampled": {}}
    for name, (text, gold) in sides.items():
        row = {"reply": text, "finished": index % 9 > 0, "tokens": 9, "gold": gold, "correct": float(gold > 0.9)}
        line |= {f"{name}_{key}": value for key, value in {**row, "reward": gold * 2}.items()}
        line["sampled"][name] = [{**row, "gold": gold + rng.choice([0, 0, -0.5])} for _ in range(4)]
    return line
