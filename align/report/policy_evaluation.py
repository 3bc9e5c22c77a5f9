"""What a stage left of the policy before and after it: whose reply was judged better, prompt by prompt, and whose was
right. `eval.jsonl`, of dpo `replies.jsonl`.

A line holds `sft_reply`, `ppo_reply` and figures of each (`sft_gold`, `ppo_gold`, `sft_correct`, …), and maybe
`sampled` replies of both; `sft` is what the stage started from, whatever that was. A judge that gives no scores leaves
`verdicts`. A win with both replies wrong is won by manners, and counted apart.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from align.evaluation.shares import Z95
from align.evaluation.wins import ComparedPair, win_rates
from align.report.names import REWARD, has_verdicts, judge_of, judged_by, scored_names, stage_name, starting_policy
from align.runs.run_files import Row, Run, StageFiles, clean, number

BEFORE = "sft"
NO_CATEGORY = "(no category)"
MOST_CATEGORIES = 40  # in a table: those with most pairs
GREEDY, SAMPLED = "greedy", "temperature 1"
KEYS = {GREEDY: "greedy", SAMPLED: "sampled"}  # of `verdicts`
WINNERS = {"win": "second", "tie": "tie", "loss": "first"}  # a verdict on the later policy, as `win_rates` takes it
Kind = Literal["won-right", "won-wrong", "won-broken", "won", "tie", "loss", ""]


@dataclass(frozen=True, slots=True)
class PolicyPair:
    """A reply of each policy to one prompt.

    Attributes:
        verdicts: one a judgment, from the later policy's side; None for a judgment that came to none.
        right: whether the reply before and the one after are correct; None where nothing tells.
        scores: the judge's, of both; None for a judge that gives none.
        longer: characters of the later reply minus those of the earlier one.
    """

    decoding: str
    prompt: int
    category: str
    verdicts: tuple[str | None, ...]
    right: tuple[bool, bool] | None
    scores: tuple[float, float] | None
    longer: int | None

    def kind(self, verdict: str | None) -> Kind:
        """What a verdict says beside what is right: a win is `won-right`, `won-wrong` (both wrong: manners) or
        `won-broken` (the reply before was right)."""
        if verdict != "win" or self.right is None:
            return {"win": "won", "tie": "tie", "loss": "loss"}.get(verdict, "")
        before, after = self.right
        return "won-right" if after else "won-broken" if before else "won-wrong"


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of judgments, and of pairs of replies with what was right of them.

    `share` is that of wins and half of the ties, with its 95 % interval; `right` and `scores` are means before and
    after, None where not known of every pair; `fell`: surely fewer replies are right than before, those to one prompt
    hanging together (the net loss is more than 1.96 of its standard errors where nothing had changed).
    """

    pairs: int
    win: int
    tie: int
    loss: int
    kinds: Counter[str]
    share: float | None
    low: float | None
    high: float | None
    no_verdict: int
    right: tuple[float, float] | None
    scores: tuple[float, float] | None
    fell: bool

    @property
    def total(self) -> int:
        """Judgments that came to a verdict."""
        return self.win + self.tie + self.loss

    @property
    def sign(self) -> int:
        """1 where the later policy won for sure, -1 where it lost, 0 where the interval of its share holds one half."""
        if self.low is None or self.high is None:
            return 0
        return (self.low > 0.5) - (self.high < 0.5)


@dataclass(frozen=True, slots=True)
class Means:
    """A figure's means over the held-out prompts before and after, a pair a decoding."""

    name: str
    by_decoding: dict[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class PolicyComparison:
    """Two policies on the same prompts: decoding -> category -> counts, "all" first.

    `judge` is the name of the score that decides, empty for a judge without; `own`: it is what was trained on;
    `left_out`: how many categories, those with fewest pairs, found no room.
    """

    stage: StageFiles
    before: str
    after: str
    judged_by: str
    judge: str
    own: bool
    tables: dict[str, dict[str, Tally]]
    at_equal_lengths: dict[str, tuple[float, float, float]]
    means: list[Means]
    left_out: int = 0

    @property
    def first(self) -> tuple[str, Tally] | None:
        """How the replies that are told first were decoded, and what came of all; None without a verdict on any."""
        return next(((decoding, table["all"]) for decoding, table in self.tables.items() if table["all"].total), None)


def comparisons(run: Run) -> list[PolicyComparison]:
    """Every stage that left replies of a policy before and after it, the last stage first."""
    found = (compared(run, stage) for stage in reversed(run.stages.values()))
    return [one for one in found if one is not None]


def compared(run: Run, stage: StageFiles) -> PolicyComparison | None:
    """What a stage's replies say, None where it compares nothing."""
    pairs = list(policy_pairs(stage))
    if not pairs or stage.name == BEFORE:
        return None
    judged, before, after = judged_by(run, stage), starting_policy(stage), stage_name(stage.name)
    tables, equal, left_out = {}, {}, 0
    for decoding in dict.fromkeys(pair.decoding for pair in pairs):
        chosen = [pair for pair in pairs if pair.decoding == decoding and pair.verdicts]
        if not chosen:
            continue
        rated = [
            ComparedPair(pair.prompt, [WINNERS.get(one or "") for one in pair.verdicts], pair.category, pair.longer)
            for pair in chosen
        ]
        rates = win_rates(rated, judged_by=judged, first=before, second=after)
        groups = defaultdict(list)
        for pair in chosen:
            groups[pair.category].append(pair)
        told = groups.keys() - {"all"} if groups.keys() != {NO_CATEGORY} else set()
        ranked = sorted(told, key=lambda name: (-len(groups[name]), name))
        most, left_out = ranked[:MOST_CATEGORIES], max(left_out, len(ranked[MOST_CATEGORIES:]))
        tables[decoding] = {"all": tally(chosen, rates)} | {
            name: tally(groups[name], rates["by_category"][name]) for name in sorted(most)
        }
        if (controlled := rates["length_controlled"]) is not None:
            equal[decoding] = (controlled["win_share"], controlled["low"], controlled["high"])
    judge = "" if has_verdicts(stage) else judge_of(stage) or ""
    return PolicyComparison(
        stage, before, after, judged, judge, judge == REWARD, tables, equal, list(means(stage)), left_out
    )


def tally(pairs: Sequence[PolicyPair], rates: dict[str, Any]) -> Tally:
    """Counts of `pairs`; `rates` is what `win_rates` says of them."""
    kinds = Counter(pair.kind(verdict) for pair in pairs for verdict in pair.verdicts)
    counts = {name: rates[name] for name in ("win", "tie", "loss", "low", "high", "no_verdict")}
    right, scores = _means([pair.right for pair in pairs]), _means([pair.scores for pair in pairs])
    found = {"kinds": kinds, "share": rates["win_share"], "right": right, "scores": scores, "fell": _fell(pairs)}
    return Tally(pairs=len(pairs), **found, **counts)


def _fell(pairs: Sequence[PolicyPair]) -> bool:
    lost: Counter[int] = Counter()
    for pair in pairs:
        if pair.right is not None:
            lost[pair.prompt] += pair.right[0] - pair.right[1]
    return lost.total() > Z95 * math.hypot(*lost.values())


def _means(sides: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    if not sides or None in sides:
        return None
    return fmean(side[0] for side in sides), fmean(side[1] for side in sides)


def policy_pairs(stage: StageFiles) -> Iterator[PolicyPair]:
    """Every two replies to the same prompt, the greedy ones and each of the sampled ones with its fellow."""
    judge = None if has_verdicts(stage) else judge_of(stage)
    for at, row in enumerate(stage.of_policies):
        for decoding, index, before, after in _replies(row, stage.name):
            scores = None if judge is None else _both(before, after, judge)
            found = _told(row, decoding, index) if scores is None else (_verdict(*scores),)
            correct, texts = _both(before, after, "correct"), [one.get("reply") for one in (before, after)]
            yield PolicyPair(
                decoding,
                at,
                clean(row.get("category"), 60) or NO_CATEGORY,
                found,
                None if correct is None else (correct[0] >= 0.5, correct[1] >= 0.5),
                scores,
                len(texts[1]) - len(texts[0]) if all(isinstance(text, str) for text in texts) else None,
            )


def _told(row: Row, decoding: str, index: int) -> tuple[str | None, ...]:
    """The verdicts that a row holds on one of its replies."""
    verdicts = row.get("verdicts")
    by_reply = verdicts.get(KEYS[decoding]) if isinstance(verdicts, dict) else None
    said = by_reply[index] if isinstance(by_reply, list) and index < len(by_reply) else None
    return (
        tuple(one if isinstance(one, str) and one in WINNERS else None for one in said)
        if isinstance(said, list)
        else ()
    )


def _verdict(before: float, after: float) -> str:
    return "win" if after > before else "loss" if after < before else "tie"


def _both(before: Row, after: Row, name: str) -> tuple[float, float] | None:
    found = number(before.get(name)), number(after.get(name))
    return None if None in found else found


def _replies(row: Row, stage: str) -> Iterator[tuple[str, int, Row, Row]]:
    """Decoding, which reply of it, and the figures of either side."""
    sides = [(f"{who}_", {}) for who in (BEFORE, stage)]
    for key, value in row.items():
        for prefix, figures in sides:
            if key.startswith(prefix):
                figures[key.removeprefix(prefix)] = value
    if all(figures for _, figures in sides):
        yield GREEDY, 0, *(figures for _, figures in sides)
    sampled = row.get("sampled")
    lists = [sampled.get(who) for who in (BEFORE, stage)] if isinstance(sampled, dict) else []
    if lists and all(isinstance(side, list) for side in lists):
        for index, pair in enumerate(zip(*lists, strict=False)):
            if all(isinstance(reply, dict) for reply in pair):
                yield SAMPLED, index, *pair


def means(stage: StageFiles) -> Iterator[Means]:
    """Of every figure that both policies' replies have: what is right first, then the judge's, then the others."""
    judge = judge_of(stage)
    replies = [reply for row in stage.of_policies for reply in _replies(row, stage.name)]
    names = [*scored_names(stage), "finished"]
    for name in sorted(set(names), key=lambda name: (name != "correct", name != judge, name.partition("/")[0], name)):
        found: dict[str, list[tuple[float, float]]] = {}
        for decoding, _, before, after in replies:
            sides = [_figure(side.get(name)) for side in (before, after)]
            if None not in sides:
                found.setdefault(decoding, []).append((sides[0], sides[1]))
        if found:
            yield Means(name, {decoding: _means(sides) for decoding, sides in found.items()})


def _figure(value: Any) -> float | None:
    return float(value) if isinstance(value, bool) else number(value)
