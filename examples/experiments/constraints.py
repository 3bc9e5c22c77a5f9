"""A task with exact figures for a small real model: does a reply follow its instruction's one checkable constraint?

    python examples/experiments/constraints.py MODEL [key=value …] [--out FOLDER] [--seeds 0 1 2] [--only gae rloo grpo]

MODEL is a folder or hub id of a chat model with ChatML (`$(align fetch smollm2)`). Prompts are made here, in the manner
of IFEval (Zhou et al. 2023): a request about a topic, and one constraint of length, words or form, which a rule checks;
1 where it holds, else 0. Topics of held-out prompts occur in no other. Each estimator trains on the same prompts with
the same seeds; what is finished in FOLDER is not run again, what was begun goes on. Prints a table, and draws the curve
(`curve.png`): the share of held-out prompts followed, greedily and at temperature 1, over iterations. Everything else
is `constraints.yaml`, whose keys the command line may change.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve()
FRAMES = ("Tell me about {}.", "What should I know about {}?", "Write something about {}.", "Describe {} to a friend.")
TOPICS = (
    *("tea", "rain", "bread", "music", "cats", "chess", "trees", "maps", "coffee", "the moon", "bicycles", "honey"),
    *("winter", "trains", "gardens", "soup", "dogs", "rivers", "books", "glass", "salt", "mountains", "bees", "clocks"),
    *("paper", "horses", "the sea", "cheese", "bridges", "dreams", "shoes", "football", "apples", "stars", "libraries"),
    *("farms", "snow", "painting", "owls", "rice", "lighthouses", "kites", "markets", "dancing", "wool", "islands"),
    *("pianos", "clouds", "wheat", "ships", "forests", "deserts", "candles", "photography", "chocolate", "swimming"),
    *("volcanoes", "mirrors"),
)
HELDOUT = 12  # topics
ESTIMATORS = ("gae", "rloo", "grpo")
CRITIC = ["ppo.critic_warmup_steps=8", "ppo.critic.learning_rate=1.0e-3"]
WORDS = ("beautiful", "people", "time", "always", "important", "small", "world", "together")


def words(text: str) -> list[str]:
    """Runs of letters, digits and apostrophes."""
    return re.findall(r"[\w'’]+", text)


def sentences(text: str) -> int:
    """Ends of sentences: marks before a blank or the end."""
    return len(re.findall(r"[.!?]+(?=\s|$)", text.strip()))


def bullets(text: str) -> int | None:
    """Lines that begin with "* "; None where another line holds anything."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) if all(re.match(r"\* \S", line) for line in lines) else None


# What is asked, the values it is asked with, and whether a text (never an empty one) does so.
CONSTRAINTS: dict[str, tuple[str, Sequence[Any], Callable[[str, Any], bool]]] = {
    "at most": ("Use at most {} words.", (8, 12, 16), lambda text, n: 3 <= len(words(text)) <= n),
    "at least": ("Use at least {} words.", (20, 25, 30), lambda text, n: len(words(text)) >= n),
    "sentences": ("Answer in exactly {} sentences.", (2, 3), lambda text, n: sentences(text) == n),
    "keyword": ('Use the word "{}".', WORDS, lambda text, word: word in map(str.lower, words(text))),
    "lowercase": ("Use lowercase letters only.{}", ("",), lambda text, _: text == text.lower() and bool(words(text))),
    "capitals": ("Use capital letters only.{}", ("",), lambda text, _: text == text.upper() and bool(words(text))),
    "no commas": ("Do not use any commas.{}", ("",), lambda text, _: "," not in text and len(words(text)) >= 8),
    "bullets": ('Give exactly {} bullet points, each after "* ".', (2, 3), lambda text, n: bullets(text) == n),
    "beginning": ('Begin with the words "{}".', ("In short", "My friend", "To be honest"), str.startswith),
    "quotes": ("Put the whole answer in double quotation marks.{}", ("",), lambda text, _: quoted(text)),
}


def quoted(text: str) -> bool:
    """Whether a text stands between two double quotation marks, and no third is in it."""
    return len(text) > 2 and text[0] == text[-1] == '"' and text.count('"') == 2


def followed(prompts: list[Any], completions: list[str], constraint: list[str], value: list[Any]) -> list[float]:
    """The reward: 1 where the reply does what its prompt's constraint says, else 0."""
    asked = zip(completions, constraint, value, strict=True)
    return [float(bool(text.strip()) and CONSTRAINTS[name][2](text.strip(), of)) for text, name, of in asked]


def prompts(topics: Sequence[str], each: int, seed: int) -> list[dict[str, Any]]:
    """`each` prompts of every constraint about these topics, in an order drawn by the seed; none twice."""
    rng, rows = random.Random(f"constraints-{seed}"), []
    for name, (sentence, values, _) in CONSTRAINTS.items():
        all_of_it = [(topic, frame, value) for topic in topics for frame in FRAMES for value in values]
        for topic, frame, value in rng.sample(all_of_it, min(each, len(all_of_it))):
            text = f"{frame.format(topic)} {sentence.format(value)}"
            rows.append({"prompt": text, "category": name, "constraint": name, "value": value})
    rng.shuffle(rows)
    return rows


def write_prompts(folder: Path, seed: int = 0) -> list[str]:
    """`train.jsonl` and `heldout.jsonl` with topics apart; the overrides that name them."""
    from align.runtime.files import write_json_lines

    topics = random.Random(f"topics-{seed}").sample(TOPICS, len(TOPICS))
    write_json_lines(folder / "train.jsonl", prompts(topics[HELDOUT:], 80, seed))
    write_json_lines(folder / "heldout.jsonl", prompts(topics[:HELDOUT], 10, seed))
    place = str(folder.resolve())
    return [f"ppo.data=[{place}/train.jsonl]", f"ppo.eval_data=[{place}/heldout.jsonl]"]


def outcome_of(model: str, advantage: str, seed: int, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The figures of one run, made where they are not there yet: `curve`, points (iteration, share followed at
    temperature 1, greedily), and those of `align.stages.policy_evaluation.compare_policies`."""
    from align.recipe import load_recipe
    from align.runtime.files import write_json
    from align.stages.common import read_rows
    from align.stages.policy_evaluation import compare_policies, eval_prompts
    from align.stages.run_ppo import run_ppo

    folder = out / advantage / f"seed{seed}"
    if not (folder / "outcome.json").is_file():
        own = CRITIC if advantage == "gae" else []
        given = [f"model.path={model}", f"seed={seed}", f"output_dir={folder}", f"ppo.advantage={advantage}", *own]
        given += [f"ppo.reward.function={HERE}:followed", *write_prompts(out)]
        recipe = load_recipe(HERE.with_suffix(".yaml"), [*given, *overrides])
        found = run_ppo(recipe, out_dir=folder)
        found |= compare_policies(recipe, folder, model, eval_prompts(recipe))
        points = [row for row in read_rows(folder / "metrics.jsonl") if "eval/score" in row]
        found["curve"] = [(row["step"], row["eval/score"], row["eval/score_greedy"], row["eval/kl"]) for row in points]
        write_json(folder / "outcome.json", found)
    return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A line an estimator and seed: share followed before and after, gains with intervals, KL, seconds."""
    lines = ["| advantage | seed | followed, T = 1 | gain | followed, greedy | gain | KL, nats a reply | seconds |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, runs in found.items():
        for one in runs:
            cells = [name, str(one["seed"])]
            for suffix in ("_sampled", ""):
                gain, after = one[f"reward_gain{suffix}"], one[f"reward{suffix}"]
                interval = f"{gain['difference']:+.1%} [{gain['low']:+.1%}, {gain['high']:+.1%}]"
                cells += [f"{after - gain['difference']:.1%} → {after:.1%}", interval]
            lines.append(f"| {' | '.join(cells)} | {one['kl']:.2f} | {one['seconds']:.0f} |")
    return "\n".join(lines)


def draw(found: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """Two panels, temperature 1 and greedy: a line an estimator, the mean of its seeds, between the least and most."""
    from align.report.style import LIGHT, Theme, legend, panels, png

    def figure(theme: Theme) -> Any:
        drawn, every = panels(2, 2, width=9.0, height=3.2)
        for axes, (at, title) in zip(every, ((1, "temperature 1"), (2, "greedy")), strict=True):
            for (name, runs), color in zip(found.items(), (theme.blue, theme.orange, theme.violet), strict=False):
                points = list(zip(*(one["curve"] for one in runs), strict=True))
                shares = [[100 * seed[at] for seed in point] for point in points]
                steps = [point[0][0] for point in points]
                axes.plot(steps, [fmean(each) for each in shares], color=color, label=name)
                least, most = ([end(each) for each in shares] for end in (min, max))
                axes.fill_between(steps, least, most, color=color, alpha=0.15, linewidth=0)
            axes.set(title=f"Held-out prompts followed, {title}", xlabel="iteration", ylabel="%")
            legend(axes, loc="lower right")
        return drawn

    file.write_bytes(png(figure, LIGHT) or b"")


def main(argv: list[str] | None = None) -> int:
    """Run what is missing; print the table and draw the curve; returns the exit code."""
    from align.runs.launch import guarded, prepare

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("runs/constraints"))
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=ESTIMATORS, default=ESTIMATORS)
    args = parser.parse_intermixed_args(argv)
    prepare()

    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
        for seed in args.seeds:
            for name in args.only:
                one = outcome_of(args.model, name, seed, args.out, args.overrides)
                found[name].append(one | {"seed": seed})
        print(table(found))
        draw(found, args.out / "curve.png")
    return ending.code


if __name__ == "__main__":
    sys.exit(main())
