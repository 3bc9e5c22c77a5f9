"""The page itself. Every text of the run goes through the template's escaping; the page has no script at all."""

from __future__ import annotations

from collections.abc import Container
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from align.evaluation.table import HEADER, percent
from align.report import replies
from align.report.figures import FIGURES
from align.report.headline import cell, headline_rows
from align.report.held_out import accuracy_table, calibration_sentence
from align.report.outcomes import REWARD, by_category, judge_of
from align.report.rejection import starting_policy
from align.report.run import Run, clean, number
from align.runtime.terminal import printable

TEMPLATES = Path(__file__).parent / "templates"
WANTED = {  # section -> stage -> files that its figures need
    "supervised": {"base": ("metrics.jsonl",), "sft": ("metrics.jsonl",)},
    "reward": {"pmp": ("metrics.jsonl", "eval.jsonl"), "rm": ("metrics.jsonl", "eval.jsonl")},
    "rejection": {"rejection": ("metrics.jsonl",)},
    "ppo": {"ppo": ("metrics.jsonl",)},
    "outcome": {"ppo": ("eval.jsonl",)},
}
CONTENT = {"metrics.jsonl": "metrics", "eval.jsonl": "evals", "samples.jsonl": "samples"}


def render(run: Run, images: Container[str]) -> str:
    """HTML of the report; `images` holds the file names of the figures that were drawn."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"percent": percent, "cell": cell}
    page = environment.get_template("page.html")
    return page.render(
        run=run,
        seed=cell(run.summary.get("seed", run.recipe.get("seed"))),
        last=last_written(run),
        rows=headline_rows(run),
        gold_range=gold_range(run),
        figures={figure.name: figure for figure in FIGURES if figure.files[0] in images},
        notes={section: notes(run, section) for section in WANTED},
        rejection="rejection" in run.expected,
        start=starting_policy(run),
        judge=judge_of(run.stages["ppo"]),
        own_judge=REWARD,
        outcomes=by_category(run.stages["ppo"]),
        gains=gains(run),
        compared=replies.compared(run),
        said={name: found for name in ("base", "sft", "ppo") if (found := replies.said(run, name))},
        table_header=HEADER,
        accuracies={name: found for name in ("pmp", "rm") if (found := accuracy_table(run.stages[name]))},
        calibration={name: found for name in ("pmp", "rm") if (found := calibration_sentence(run.stages[name]))},
        worst={name: found for name in ("pmp", "rm") if (found := replies.worst_pairs(run, name))},
        pairs={name: found for name in ("pmp", "rm") if (found := replies.judged_pairs(run, name))},
        recipes=recipes(run),
    )


def _visible(value: Any) -> Any:
    """Every text that the template prints, with what would turn its direction round or hide it as a visible escape."""
    return type(value)(printable(value)) if isinstance(value, str) else value  # jinja's Markup is a str that stays one


def notes(run: Run, section: str) -> list[str]:
    """What a section lacks, a sentence each; one sentence when the chain has none of its stages."""
    wanted = {stage: files for stage, files in WANTED[section].items() if stage in run.expected}
    if not wanted:
        stages = " nor ".join(WANTED[section])
        return [
            f"{'Neither ' if ' nor ' in stages else 'No '}{stages} {'is' if ' nor ' in stages else 'stage is'} here."
        ]
    found = []
    for name, files in wanted.items():
        stage = run.stages[name]
        if stage.state == "not run":
            found.append(f"{name} has not run yet.")
            continue
        if stage.state == "unfinished":
            found.append(f"{name} is unfinished, at step {stage.last_step}.")
        found += [f"{name}/{file} is missing or empty." for file in files if not getattr(stage, CONTENT[file])]
    return found


def gold_range(run: Run) -> list[str]:
    """Both ends of the gold score's range, nothing for other chains."""
    ends = run.summary.get("gold_range")
    return [cell(end) for end in ends] if isinstance(ends, list) and len(ends) == 2 else []


def gains(run: Run) -> list[str]:
    """Mean differences after - before with their 95 % intervals, as the ppo summary tells them."""
    sentences = []
    for key, value in run.stages["ppo"].summary.items():
        ends = [number(value.get(end)) for end in ("difference", "low", "high")] if isinstance(value, dict) else [None]
        if "_gain" in key and None not in ends:
            name, _, decoding = clean(key, 60).partition("_gain")
            how = "temperature 1" if decoding == "_sampled" else decoding.strip("_") or "greedy"
            sentences.append(f"{name}, {how}: {ends[0]:+.3f} [{ends[1]:+.3f}, {ends[2]:+.3f}]")
    return sentences


def recipes(run: Run) -> dict[str, str]:
    """Resolved recipe -> the stages that ran with it."""
    texts: dict[str, list[str]] = {}
    for stage in run.stages.values():
        if stage.recipe_text:
            texts.setdefault(clean(stage.recipe_text, 200_000), []).append(stage.name)
    return {text: ", ".join(names) for text, names in texts.items()}


def last_written(run: Run) -> str:
    """When the last figure was logged, "" when nothing tells."""
    times = [
        time
        for stage in run.stages.values()
        for line in stage.metrics
        if (time := number(line.get("time"))) is not None
    ]
    try:
        return datetime.fromtimestamp(max(times), UTC).strftime("%Y-%m-%d %H:%M UTC") if times else ""
    except (ValueError, OverflowError, OSError):
        return ""
