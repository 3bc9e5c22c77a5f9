"""The page itself. Every text of the run goes through the template's escaping; the one script is ours, and its hash is
all that the page's policy lets run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from align.doctor import Diagnosis, examine, history_of
from align.evaluation.table import HEADER
from align.recipe import STAGES
from align.report import replies
from align.report.accuracy import accuracy_table, calibration_sentence
from align.report.glance import GlanceRow, at_a_glance
from align.report.glossary import TERMS
from align.report.headline import cell, headline_rows
from align.report.mixture import mixture_tables
from align.report.names import reward_named, section_of, stage_name
from align.report.policy_evaluation import comparisons
from align.report.rounds import rounds_table
from align.report.svg import Picture
from align.report.template import TEMPLATES, template
from align.runs.run_files import Row, Run, StageFiles, clean, number

SECTIONS = {  # id -> its heading ({stages}: those that the chain has), and the files that its figures need
    "supervised": ("{stages}", ("metrics.jsonl",)),
    "reward": ("Comparisons: {stages}", ("metrics.jsonl", "eval.jsonl")),
    "rejection": ("Rejection sampling", ("metrics.jsonl",)),
    "ppo": ("PPO", ("metrics.jsonl",)),
}
CONTENT = {"metrics.jsonl": "metrics", "eval.jsonl": "evals", "samples.jsonl": "samples"}
MADE_WITH = ("align", "commit", "torch", "transformers", "python", "hardware", "processes", "command")
RECIPE_CHARACTERS = 50_000


def render(run: Run, figures: Mapping[str, Sequence[Picture]]) -> str:
    """HTML of the report with the figures that were drawn, by name."""
    rewards, compared = run.shown_in("reward"), comparisons(run)
    return template("page.html").render(
        run=run,
        facts=facts(run),
        glance=at_a_glance(run, compared),
        made=made_with(run),
        rows=headline_rows(run),
        rounds=rounds_table(run.summary.get("rounds")),
        mixtures=mixture_tables(run),
        gold_range=gold_range(run),
        figures=figures,
        sections=sections(run),
        rewarded={name: reward_named(section_of(run, name), run.stages[name].summary) for name in run.stages},
        compared=compared,
        unjudged=notes_of_outcome(run),
        side_by_side={one.stage.name: replies.side_by_side(one) for one in compared},
        kinds=replies.KINDS,
        changes=tuple(replies.CHANGES.values()),
        diagnosis=diagnosis(run),
        tax=alignment_tax(run.tax),
        said={name: found for name in run.stages if (found := replies.said(run, name))},
        table_header=HEADER,
        accuracies={stage.name: found for stage in rewards if (found := accuracy_table(stage))},
        calibration={stage.name: found for stage in rewards if (found := calibration_sentence(stage))},
        worst={stage.name: found for stage in rewards if (found := replies.worst_pairs(run, stage.name))},
        pairs={stage.name: found for stage in rewards if (found := replies.judged_pairs(run, stage.name))},
        recipes=recipes(run),
        terms=TERMS,
        script_hash=script_hash(),
    )


def script_hash() -> str:
    """What the page's policy names its script by."""
    text = (TEMPLATES / "replies.js").read_text(encoding="utf-8").removesuffix("\n")  # jinja takes the last one off
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def sections(run: Run) -> dict[str, tuple[str, list[str]]]:
    """The sections of stages that the run has or is to have: id -> heading, and a sentence for each thing it lacks."""
    found = {}
    for section, (heading, files) in SECTIONS.items():
        stages = [stage for stage in run.shown_in(section) if stage.name in run.expected]
        notes = []
        for stage in stages:
            if stage.state == "not run":
                notes.append(f"{stage.name} has not run yet.")
                continue
            if stage.state == "unfinished":
                notes.append(f"{stage.name} is unfinished, at step {stage.last_step}.")
            notes += selected(stage)
            empty = (file for file in files if not getattr(stage, CONTENT[file]))
            notes += [f"{stage.name}/{file} is missing or empty." for file in empty]
        if stages:
            *others, last = (stage_name(stage.name) for stage in stages)
            names = f"{', '.join(others)} and {last}" if others else last
            found[section] = (heading.format(stages=names), notes)
    return found


def selected(stage: StageFiles) -> list[str]:
    """A sentence of the rows that the stage has chosen, where it has."""
    found = _object(stage.summary.get("selection"))
    rows, kept = number(found.get("rows")), number(found.get("kept"))
    if rows is None or kept is None:
        return []
    dropped = _object(found.get("dropped"))
    why = ", ".join(f"{cell(count)} {clean(reason, 40)}" for reason, count in dropped.items() if number(count))
    page = f"{stage.name}/selection/index.html shows them"
    return [f"{stage.name} chose {cell(kept)} of {cell(rows)} rows ({why or 'none dropped'}); {page}."]


def notes_of_outcome(run: Run) -> list[str]:
    """A sentence for each stage that is to compare two policies and has not."""
    found = []
    for name in run.expected:
        stage, section = run.stages[name], section_of(run, name)
        if not (STAGES[name].samples and section.get("eval_data")) or stage.evals:
            continue
        states = {
            "not run": f"{name} has not run yet.",
            "unfinished": f"{name} is unfinished, at step {stage.last_step}; it is compared with its start at its end.",
            "finished": f"{name}/eval.jsonl is missing or empty.",
        }
        found.append(states[stage.state])
    return found


def diagnosis(run: Run) -> Diagnosis | None:
    """What the doctor says of the ppo stage, None where it has logged no iteration."""
    history = history_of(run.stages["ppo"])
    return examine(history) if history.iterations else None


def facts(run: Run) -> list[str]:
    """One line below the name: what was it, how long did it take, and on what."""
    made = dict(made_with(run))
    told = [f"seed {made['seed']}"] if "seed" in made else []
    told += [f"{made['seconds'].partition(' ')[0]} s"] if "seconds" in made else []
    told += [made[key] for key in ("hardware",) if key in made]
    told += [f"align {made['align']}" + (f" ({made['commit']})" if "commit" in made else "")] if "align" in made else []
    return told + ([f"last figure logged {last}"] if (last := last_written(run)) else [])


@dataclass(frozen=True, slots=True)
class Tax:
    """What `align eval --tax` measured: of which two models, on how much text, and a row a figure."""

    before: str
    after: str
    measured_on: str
    rows: list[GlanceRow]


def alignment_tax(found: Row) -> Tax | None:
    """`tax.json`, as far as it is what it should be; None without a figure."""
    sides = {side: _object(found.get(side)) for side in ("before", "after")}
    changes, rows = _object(found.get("difference")), []
    for key, words in (("loss", "held-out loss, nats a token"), ("bits_per_byte", "bits per byte")):
        rows.append(_taxed(words, sides["before"].get(key), sides["after"].get(key), changes.get(key)))
    for task, metrics in _object(found.get("tasks")).items():
        for metric, one in _object(metrics).items():
            figures = _object(one)
            rows.append(_taxed(f"{task}: {metric}", figures.get("before"), figures.get("after"), figures))
    known = [row for row in rows if row is not None]
    named = [clean(sides[side].get("model"), 60) or side for side in ("before", "after")]
    counts = [f"{cell(count)} {what}" for what in ("documents", "tokens") if (count := number(found.get(what)))]
    return Tax(*named, ", ".join(counts), known) if known else None


def _object(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def _taxed(measured: str, before: Any, after: Any, change: Any) -> GlanceRow | None:
    if number(before) is None or number(after) is None:
        return None
    ends = [number(_object(change).get(end)) for end in ("difference", "low", "high")]
    told = ("", "") if None in ends else (f"{ends[0]:+.4f}", f"[{ends[1]:+.4f}, {ends[2]:+.4f}]")
    return GlanceRow(clean(measured, 100), cell(before), cell(after), *told)


def made_with(run: Run) -> list[tuple[str, str]]:
    """Name and value of what the run was made with, as far as its summaries tell; what differs from stage to stage is
    told of each."""
    finished = {name: stage.summary for name, stage in run.stages.items() if stage.summary}
    told = {name: made for name, summary in finished.items() if isinstance(made := summary.get("made_with"), dict)}
    rows = [(key, _each({name: _told(made.get(key)) for name, made in told.items()})) for key in MADE_WITH]
    seconds = {name: took for name, one in finished.items() if (took := number(one.get("seconds"))) is not None}
    if seconds:
        parts = ", ".join(f"{name} {took:.0f}" for name, took in seconds.items())
        rows.append(("seconds", f"{sum(seconds.values()):.0f}" + (f" ({parts})" if len(seconds) > 1 else "")))
    peaks = [peak for one in finished.values() if (peak := number(one.get("peak_memory_gib"))) is not None]
    rows += [("peak memory", f"{max(peaks):g} GiB")] if peaks else []
    seed = run.summary.get("seed", run.recipe.get("seed"))
    return [(key, value) for key, value in [*rows, ("seed", cell(seed))] if value]


def _told(value: Any) -> str:
    return cell(value) if number(value) is not None else clean(value, 2000)


def _each(values: Row) -> str:
    """One value where all stages have the same, else that of each."""
    known = {name: value for name, value in values.items() if value}
    if len(set(known.values())) <= 1:
        return next(iter(known.values()), "")
    return "; ".join(f"{name}: {value}" for name, value in known.items())


def gold_range(run: Run) -> list[str]:
    """Both ends of the gold score's range, nothing for other chains."""
    ends = run.summary.get("gold_range")
    return [cell(end) for end in ends] if isinstance(ends, list) and len(ends) == 2 else []


def recipes(run: Run) -> dict[str, str]:
    """Resolved recipe -> the stages that ran with it."""
    texts: dict[str, list[str]] = {}
    for stage in run.stages.values():
        if stage.recipe_text:
            texts.setdefault(clean(stage.recipe_text, RECIPE_CHARACTERS), []).append(stage.name)
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
