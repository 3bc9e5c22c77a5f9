"""What a run came to, for a reader who reads no further: one sentence, what to beware of, and a small table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from align.evaluation.table import percent
from align.recipe import STAGES
from align.report.headline import cell
from align.report.names import section_of, stage_name
from align.report.policy_evaluation import GREEDY, PolicyComparison, Tally
from align.runs.run_files import Row, Run, StageFiles, clean, number

OWN_JUDGE = (
    "The judge is what {after} was trained on, for want of another: a win says that training worked, not that people "
    "would agree."
)


@dataclass(frozen=True, slots=True)
class GlanceRow:
    """One line: what was measured, of the policy before and the one after; the difference and its 95 % interval."""

    measured: str
    before: str
    after: str
    difference: str = ""
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Glance:
    """The top of the page."""

    sentence: str
    beware: list[str]
    rows: list[GlanceRow]
    before: str = ""
    after: str = ""


def at_a_glance(run: Run, compared: list[PolicyComparison]) -> Glance:
    """What the last stage that made a policy came to; without one, what the run has so far."""
    begun = [stage for stage in run.stages.values() if stage.state != "not run"]
    if not begun:
        return Glance("No stage has left anything in this folder yet.", [], [])
    last = begun[-1]
    if compared and compared[0].stage is last and compared[0].first is not None:
        one = compared[0]
        return Glance(_outcome(one), list(_beware(one)), list(_rows(one)), one.before, one.after)
    return Glance(_progress(run, begun), [], [])


def _outcome(one: PolicyComparison) -> str:
    """PPO won 254 of 300 against SFT, correct 48 → 64 %; judged by …"""
    decoding, all_ = one.first
    how = "" if decoding == GREEDY else f" ({decoding})"
    right = "" if all_.right is None else f", correct {_whole(all_.right[0])} → {_whole(all_.right[1])} %"
    return f"{_decided(one, all_)}{how}{right}; judged by {one.judged_by}."


def _decided(one: PolicyComparison, counts: Tally) -> str:
    """Who won for sure, how often; all counts where that is no majority or nobody did."""
    (other, less), (verdict, often) = sorted({"lost": counts.loss, "won": counts.win}.items(), key=lambda one: one[1])
    of = f"{counts.total}{'' if counts.total == counts.pairs else ' judgments'}"
    told = f"{one.after} {verdict} {often} of {of} against {one.before}"
    if counts.sign and 2 * often > counts.total:
        return told
    others = "".join(f", {word} {count}" for word, count in (("tied", counts.tie), (other, less)) if count)
    return f"{told}{others}" if counts.sign else f"No sure winner: {told}{others}"


def _whole(share: float) -> str:
    return f"{100 * share:.0f}"


def _beware(one: PolicyComparison) -> Iterator[str]:
    decoding, all_ = one.first
    if manners := all_.kinds.get("won-wrong", 0):
        yield f"In {_of_all(manners, all_.win)} both replies were wrong: these are won by manners."
    if broken := all_.kinds.get("won-broken", 0):
        yield f"In {_of_all(broken, all_.win)} a right reply became a wrong one."
    worse = {name: counts.right for name, counts in one.tables[decoding].items() if name != "all" and counts.fell}
    if fell := [f"{name} ({_whole(before)} → {_whole(after)} %)" for name, (before, after) in worse.items()]:
        yield f"Correct fell in {', '.join(fell)}."
    gain = _difference(one.stage.summary, "correct", decoding)
    if all_.right is not None and gain is not None and gain[0] and gain[1] <= 0 <= gain[2]:
        yield "The change in correct may be chance: its interval holds 0."
    if not all_.sign and all_.low is not None:
        yield f"The interval of the win share, {_interval(all_)}, holds 50 %: who won may be chance."
    for other, table in one.tables.items():
        if table["all"].total and table["all"].sign != all_.sign:
            yield f"At {other} it is otherwise. {_decided(one, table['all'])}."
    own = one.stage.summary.get("reward_on_own")
    if isinstance(own, dict) and own.get("due"):
        yield f"{clean(own['due'], 400).capitalize()}."
    if one.own:
        yield OWN_JUDGE.format(after=one.after)


def _of_all(some: int, wins: int) -> str:
    return f"all {wins} wins" if some == wins > 1 else f"{some} of the {wins} wins"


def _rows(one: PolicyComparison) -> Iterator[GlanceRow]:
    """What is right first, then the judge's verdict, then scores."""
    summary, means = one.stage.summary, {mean.name: mean.by_decoding for mean in one.means}
    for decoding, (before, after) in means.get("correct", {}).items():
        gain = _gain(summary, "correct", decoding, 100)
        yield GlanceRow(f"correct, {decoding}", percent(before), percent(after), *gain)
    for decoding, table in one.tables.items():
        yield GlanceRow(f"won, {decoding}", "", _won(table["all"]), *_share(table["all"]))
    for decoding, (before, after) in means.get(one.judge, {}).items():
        yield GlanceRow(f"{one.judge}, {decoding}", cell(before), cell(after), *_gain(summary, one.judge, decoding, 1))


def _won(counts: Tally) -> str:
    lost = f"{counts.loss} lost"
    ties = f", {counts.tie} tied" if counts.tie else ""
    return f"{counts.win} of {counts.total}{ties}, {lost}"


def _share(counts: Tally) -> tuple[str, str]:
    if counts.share is None:
        return "", ""
    return percent(counts.share), _interval(counts)


def _interval(counts: Tally) -> str:
    return f"[{100 * counts.low:.1f}, {100 * counts.high:.1f}]"


def _gain(summary: Row, name: str, decoding: str, unit: int) -> tuple[str, str]:
    """A difference and its 95 % interval in words; in points where the unit is 100."""
    found = _difference(summary, name, decoding)
    if found is None:
        return "", ""
    middle, low, high = (f"{unit * end:+.{1 if unit == 100 else 2}f}" for end in found)
    return f"{middle} points" if unit == 100 else middle, f"[{low}, {high}]"


def _difference(summary: Row, name: str, decoding: str) -> list[float] | None:
    """A difference and the ends of its 95 % interval, as the summary tells them."""
    value = summary.get(f"{name}_gain{'' if decoding == GREEDY else '_sampled'}")
    ends = [number(value.get(end)) for end in ("difference", "low", "high")] if isinstance(value, dict) else [None]
    return None if None in ends else ends


def _progress(run: Run, begun: list[StageFiles]) -> str:
    """What is finished, where the stage that runs is, or what the last one measured."""
    last = begun[-1]
    if last.state == "unfinished":
        done = [stage_name(stage.name) for stage in begun if stage.state == "finished"]
        section = section_of(run, last.name)
        wanted = number(section.get("num_iterations", section.get("max_steps")))
        of = f" of {wanted:g}" if wanted is not None and wanted > 0 else ""
        where = f"{stage_name(last.name)} is unfinished, at step {last.last_step}{of}"
        return f"{where}; finished before it: {', '.join(done)}." if done else f"{where}."
    return _measured(last) or f"{stage_name(last.name)} is finished."


def _measured(stage: StageFiles) -> str:
    summary, name = stage.summary, stage_name(stage.name)
    accuracy, loss = number(summary.get("accuracy")), number(summary.get("heldout_loss"))
    if STAGES[stage.name].figures == "reward" and accuracy is not None:
        low, high = number(summary.get("accuracy_low")), number(summary.get("accuracy_high"))
        interval = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
        length = number(summary.get("length_baseline"))
        beside = "" if length is None else f" (length alone: {percent(length)})"
        right = f"{name} is right on {percent(accuracy)}{interval} of {cell(summary.get('pairs'))} held-out pairs"
        return f"{right}{beside}; judged by the pairs' labels."
    if loss is not None:
        before = number(summary.get("heldout_loss_before"))
        start = "" if before is None else f" (before: {cell(before)})"
        return f"{name} has a held-out loss of {cell(loss)} nats a token{start}."
    score, first = number(summary.get("rollout_score")), number(summary.get("rollout_score_first"))
    if score is not None and first is not None:
        went = f"{name}'s reward on rollouts went from {cell(first)} to {cell(score)}"
        return f"{went}; nothing judged it on held-out prompts."
    return ""
