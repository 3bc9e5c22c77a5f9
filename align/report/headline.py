"""The rows of the headline table: what each stage measured, before and after, and how long it took.

The table of the terminal and that of the page have the same rows. Those of a stage are put together by the function
that its record in `align.recipe.registry` names, of its summary and of the rows that the summary itself holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from align.evaluation.table import percent
from align.recipe import STAGES
from align.report.names import reward_named, section_of
from align.runs.run_files import Row, Run, StageFiles, clean, number
from align.runtime.resolve import resolve

Line = tuple[str, Any, Any]
BEFORE_AND_AFTER = (  # ppo: what is measured, the keys before and after
    ("{reward}'s score, temperature 1", "score_before", "score"),
    ("{reward}'s score, greedy", "score_greedy_before", "score_greedy"),
    ("KL from the reference, nats a reply", None, "kl"),
    ("entropy, nats a token", "entropy_before", "entropy"),
)


@dataclass(frozen=True, slots=True)
class HeadlineRow:
    """One line of the table; `stage` and `seconds` are empty after a stage's first."""

    stage: str
    measured: str
    before: str
    after: str
    seconds: str


BASELINES = {"length_baseline": "by length alone", "majority_baseline": "by the side that won more often"}


def headline_rows(run: Run) -> list[HeadlineRow]:
    """The table, stage by stage; stages that have not finished say so."""
    rows = []
    for name in run.expected:
        stage = run.stages[name]
        known = {"rewarded_by": reward_named(section_of(run, name), stage.summary)} if stage.summary else {}
        lines = list(headline(name, known | stage.summary)) or [(_state(stage), None, None)]
        took = number(stage.summary.get("seconds"))
        for index, (what, before, after) in enumerate(lines):
            seconds = f"{took:.0f}" if index == 0 and took is not None else ""
            rows.append(
                HeadlineRow(name if index == 0 else "", clean(what).strip(), cell(before), cell(after), seconds)
            )
    return rows


def _state(stage: StageFiles) -> str:
    return f"unfinished, at step {stage.last_step}" if stage.state == "unfinished" else stage.state


def headline(stage: str, summary: Row) -> Iterator[Line]:
    """(what was measured, before, after) of one stage."""
    rows = summary.get("headline")
    told = [tuple(row) for row in rows if isinstance(row, list) and len(row) == 3] if isinstance(rows, list) else []
    return resolve(STAGES[stage].headline)(summary, told)


def plain(summary: Row, told: list[Line]) -> Iterator[Line]:
    """The rows of a stage that writes them itself."""
    yield from told
    if number(summary.get("end_rate")) is not None:
        yield "replies that end by themselves", None, percent(summary["end_rate"])


def losses(summary: Row, told: list[Line]) -> Iterator[Line]:
    """The rows of a language model: its loss on held-out rows, and which step was the best."""
    entropy, before = number(summary.get("unigram_entropy")), number(summary.get("heldout_loss_before"))
    if number(summary.get("heldout_loss")) is not None:
        start = f"{cell(entropy)} (unigram entropy)" if before is None and entropy is not None else before
        yield "held-out loss, nats a token", start, summary["heldout_loss"]
    elif number(summary.get("train_loss")) is not None:
        yield "training loss, nats a token (nothing held out)", None, summary["train_loss"]
    yield from _best(summary)
    yield from plain(summary, told)


def _best(summary: Row) -> Iterator[Line]:
    if number(summary.get("best_step")) is not None:
        yield "  the best, of step", None, f"{cell(summary['best_step'])} of {cell(summary.get('steps'))}"


def accuracies(summary: Row, told: list[Line]) -> Iterator[Line]:
    """The rows of a reward model: its accuracy on held-out pairs beside what is had without it."""
    yield from _accuracies(summary)
    yield from _best(summary)
    yield from told


def implicit_rewards(summary: Row, told: list[Line]) -> Iterator[Line]:
    """The rows of DPO: of the policy before and after it, then the accuracy of its implicit rewards."""
    yield from _of_policy(told)
    yield from _accuracies(summary)
    if number(summary.get("margin")) is not None:
        yield "  margin of the implicit rewards", None, summary["margin"]
    if number(summary.get("accuracy")) is None and number(summary.get("train_loss")) is not None:
        yield "training loss, nats a pair (nothing held out)", None, summary["train_loss"]
    yield from _best(summary)
    yield from plain(summary, [])


def _accuracies(summary: Row) -> Iterator[Line]:
    accuracy, before = number(summary.get("accuracy")), number(summary.get("accuracy_before"))
    if accuracy is None:
        return
    low, high = number(summary.get("accuracy_low")), number(summary.get("accuracy_high"))
    interval = f" [{percent(low)}, {percent(high)}]" if low is not None and high is not None else ""
    start = percent(before) if before is not None else "50.0 % (chance)"
    yield f"accuracy on {cell(summary.get('pairs'))} held-out pairs", start, percent(accuracy) + interval
    for tag, part in tagged(summary).items():
        yield f"  those tagged {tag} ({cell(part.get('pairs'))})", None, percent(part["accuracy"])
    for name, what in BASELINES.items():
        if number(summary.get(name)) is not None:
            yield f"  {what}", None, percent(summary[name])


def tagged(summary: Row) -> dict[str, Row]:
    """`by_tag` of a reward stage's summary, as far as it is what it should be."""
    parts = summary.get("by_tag")
    found = parts.items() if isinstance(parts, dict) else ()
    return {tag: part for tag, part in found if isinstance(part, dict) and number(part.get("accuracy")) is not None}


def policy(summary: Row, told: list[Line]) -> Iterator[Line]:
    """The rows of a policy: what is right comes first, then who won, then scores, last those it was trained on."""
    yield from _of_policy(told)
    reward = clean(summary.get("rewarded_by"), 100) or reward_named({}, summary)
    if number(summary.get("score")) is None and number(summary.get("rollout_score")) is not None:
        yield f"{reward}'s score on rollouts", summary.get("rollout_score_first"), summary["rollout_score"]
    if number(summary.get("gold_before")) is not None:  # else `gold` is the world's, told among the headlines
        yield "gold reward (never trained on), temperature 1", summary["gold_before"], summary.get("gold")
    for what, before, after in BEFORE_AND_AFTER:
        if number(summary.get(after)) is not None:
            yield what.replace("{reward}", reward), summary.get(before) if before else None, summary[after]
    yield from plain(summary, [])


def _of_policy(told: list[Line]) -> list[Line]:
    return sorted((_as_share(row) for row in told), key=_rank)


def _rank(row: Line) -> int:
    what = str(row[0])
    return 0 if what.startswith("correct") else 1 if what.startswith("win ") else 2


def _as_share(row: Line) -> Line:
    """Shares of correct replies are told in percent."""
    what, *sides = row
    if not str(what).startswith("correct"):
        return row
    before, after = (side if (share := number(side)) is None else percent(share) for side in sides)
    return what, before, after


def cell(value: Any) -> str:
    """A figure as the table shows it: four digits; nothing for None and for what is not finite."""
    figure = number(value)
    if figure is None:
        return "" if isinstance(value, float) else clean(value, 200)
    return str(value) if isinstance(value, int) else f"{figure:.4g}"
