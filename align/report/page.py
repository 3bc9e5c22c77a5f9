"""The page itself. Every text of the run goes through the template's escaping; the page has no script at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from align.evaluation.table import HEADER, percent
from align.recipe import STAGES
from align.report import replies
from align.report.accuracy import accuracy_table, calibration_sentence
from align.report.headline import cell, headline_rows
from align.report.policy_evaluation import REWARD, by_category, judge_of, starting_policy
from align.report.svg import Picture
from align.runs.run_files import Run, clean, number
from align.runtime.terminal import printable

TEMPLATES = Path(__file__).parent / "templates"
WANTED = {  # section -> files that the figures of its stages need
    "supervised": ("metrics.jsonl",),
    "reward": ("metrics.jsonl", "eval.jsonl"),
    "rejection": ("metrics.jsonl",),
    "ppo": ("metrics.jsonl",),
    "outcome": ("eval.jsonl",),
}
OF_SECTION = {"outcome": "ppo"}  # whose stages a section shows that none is named after
CONTENT = {"metrics.jsonl": "metrics", "eval.jsonl": "evals", "samples.jsonl": "samples"}


def render(run: Run, figures: Mapping[str, Sequence[Picture]]) -> str:
    """HTML of the report with the figures that were drawn, by name."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"percent": percent, "cell": cell}
    page, rewards = environment.get_template("page.html"), run.shown_in("reward")
    return page.render(
        run=run,
        seed=cell(run.summary.get("seed", run.recipe.get("seed"))),
        last=last_written(run),
        rows=headline_rows(run),
        gold_range=gold_range(run),
        figures=figures,
        notes={section: notes(run, section) for section in WANTED},
        rejection=any(stage.name in run.expected for stage in run.shown_in("rejection")),
        start=starting_policy(run),
        judge=judge_of(run.stages["ppo"]),
        own_judge=REWARD,
        outcomes=by_category(run.stages["ppo"]),
        gains=gains(run),
        compared=replies.compared(run),
        said={name: found for name in run.stages if (found := replies.said(run, name))},
        table_header=HEADER,
        accuracies={stage.name: found for stage in rewards if (found := accuracy_table(stage))},
        calibration={stage.name: found for stage in rewards if (found := calibration_sentence(stage))},
        worst={stage.name: found for stage in rewards if (found := replies.worst_pairs(run, stage.name))},
        pairs={stage.name: found for stage in rewards if (found := replies.judged_pairs(run, stage.name))},
        recipes=recipes(run),
    )


def _visible(value: Any) -> Any:
    """Every text that the template prints, with what would turn its direction round or hide it as a visible escape."""
    return type(value)(printable(value)) if isinstance(value, str) else value  # jinja's Markup is a str that stays one


def notes(run: Run, section: str) -> list[str]:
    """What a section lacks, a sentence each; one sentence when the chain has none of its stages."""
    shown = [stage.name for stage in STAGES.values() if stage.figures == OF_SECTION.get(section, section)]
    wanted = [name for name in shown if name in run.expected]
    if not wanted:
        stages = " nor ".join(shown)
        return [
            f"{'Neither ' if ' nor ' in stages else 'No '}{stages} {'is' if ' nor ' in stages else 'stage is'} here."
        ]
    found = []
    for name in wanted:
        stage = run.stages[name]
        if stage.state == "not run":
            found.append(f"{name} has not run yet.")
            continue
        if stage.state == "unfinished":
            found.append(f"{name} is unfinished, at step {stage.last_step}.")
        empty = (file for file in WANTED[section] if not getattr(stage, CONTENT[file]))
        found += [f"{name}/{file} is missing or empty." for file in empty]
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
