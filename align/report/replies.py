"""Sample replies for the page: those of both policies side by side, and what stages left. Escaping is the template's
work; how much there is room for is decided here, so that a page stays under 2 MB."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from statistics import fmean
from typing import Any

from align.evaluation.accuracy import most_wrong
from align.report.accuracy import scored
from align.report.names import stage_name
from align.report.policy_evaluation import BEFORE, GREEDY, NO_CATEGORY, PolicyComparison, PolicyPair, policy_pairs
from align.runs.run_files import Row, Run, clean, number
from align.runtime.terminal import printable

FIRST, OF_A_STAGE, WORST = 20, 8, 10
ROOM = 700_000  # bytes of the page for the replies side by side
FRAME = 1_000  # bytes that one of them needs beside its texts
REPLY_CHARACTERS, TOKEN_CHARACTERS = 4000, 1500
KL_STEPS = (0.5, 1.0, 2.0)  # nats at which a token's shade gets stronger: odds of 1.6, 2.7 and 7.4
KINDS = {  # of an exchange -> what it is called; {after} is the later policy
    "won-right": "{after} won, and is right",
    "won": "{after} won",
    "won-wrong": "{after} won by manners: both wrong",
    "won-broken": "{after} won, though only {before} is right",
    "tie": "tie",
    "loss": "{after} lost",
}
CHANGES = {
    (False, True): "wrong, then right",
    (True, False): "right, then wrong",
    (True, True): "both right",
    (False, False): "both wrong",
}
_TOLD_ELSEWHERE = ("reply", "text", "correct")
_OF_A_SAMPLE = ("step", "score", "kl", "finished", "tokens", "reply_tokens")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a sampled reply: `shade` is `up1` to `up3` where the policy likes it more than the reference does,
    `down1` to `down3` where less, empty where they agree; `note` says by how many nats."""

    text: str
    shade: str
    note: str


@dataclass(frozen=True, slots=True)
class ShownReply:
    """One side: who says it, the text, small figures under it, its tokens where they are known, and whether it is
    right, where that is."""

    who: str
    text: str
    notes: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and the replies that stand side by side.

    Attributes:
        verdict: win, tie, loss, right, wrong or empty: how it is coloured.
        badge: the verdict in words.
        kind, change: keys of KINDS and values of CHANGES, to choose by.
        gain: of the judge's score, or of its verdicts, to sort by.
    """

    prompt: str
    category: str
    replies: list[ShownReply]
    verdict: str = ""
    badge: str = ""
    kind: str = ""
    change: str = ""
    gain: float = 0.0

    @property
    def size(self) -> int:
        """About how many bytes of the page it takes."""
        texts = (self.prompt, self.category, *(text for one in self.replies for text in (one.text, *one.notes)))
        return FRAME + sum(len(escape(printable(text)).encode()) for text in texts)


@dataclass(frozen=True, slots=True)
class ShownExchanges:
    """Greedy replies of two policies to the same prompts; `left_out` found no room."""

    exchanges: list[Exchange]
    left_out: int

    @property
    def first(self) -> list[Exchange]:
        """What is shown at once."""
        return self.exchanges[:FIRST]

    @property
    def others(self) -> list[Exchange]:
        return self.exchanges[FIRST:]

    def choices(self, of: str, order: Iterable[str] = ()) -> dict[str, int]:
        """How many exchanges have each value of the attribute `of`, in the given order, else in the alphabet's."""
        counts = Counter(value for one in self.exchanges if (value := getattr(one, of)))
        return {name: counts[name] for name in (order or sorted(counts)) if name in counts}


def side_by_side(one: PolicyComparison) -> ShownExchanges:
    """The first of each category in turn, not hand-picked, as many as there is room for."""
    pairs = {pair.prompt: pair for pair in policy_pairs(one.stage) if pair.decoding == GREEDY}
    rows = one.stage.of_policies
    told = {at for at in pairs if f"{BEFORE}_reply" in rows[at] and f"{one.stage.name}_reply" in rows[at]}
    found, room = [], ROOM
    for at in in_turn(rows):
        if at not in told:
            continue
        exchange = _compared(rows[at], pairs[at], one)
        room -= exchange.size
        if room < 0:
            break
        found.append(exchange)
    return ShownExchanges(found, len(told) - len(found))


def _compared(row: Row, pair: PolicyPair, one: PolicyComparison) -> Exchange:
    names, right = {BEFORE: one.before, one.stage.name: one.after}, pair.right or (None, None)
    kinds = Counter(pair.kind(verdict) for verdict in pair.verdicts if verdict is not None)
    won, lost = (sum(verdict == side for verdict in pair.verdicts) for side in ("win", "loss"))
    verdict = "" if not kinds else "win" if won > lost else "loss" if lost > won else "tie"
    kind = pair.kind(verdict or None)
    badge = KINDS.get(kind, "").format(before=one.before, after=one.after)
    if (judged := kinds.total()) > 1:
        badge += f" ({won} of {judged} judgments)"
    worth = [{"win": 1.0, "loss": -1.0}.get(one, 0.0) for one in pair.verdicts if one]
    return Exchange(
        message_text(row.get("prompt")),
        clean(row.get("category"), 60),
        [
            ShownReply(name, message_text(row[f"{who}_reply"]), _notes(row, f"{who}_"), right=good)
            for (who, name), good in zip(names.items(), right, strict=True)
        ],
        verdict,
        badge,
        kind,
        CHANGES[pair.right] if pair.right else "",
        pair.scores[1] - pair.scores[0] if pair.scores else fmean(worth) if worth else 0.0,
    )


def said(run: Run, name: str) -> list[Exchange]:
    """Replies in a stage's `samples.jsonl` beside the reference where there is one: those of the last step (of ppo,
    the last ones; of sft with a best model, those of its step)."""
    stage = run.stages[name]
    rows = [row for row in stage.samples if "reply" in row]
    if name == "ppo":
        rows = rows[-OF_A_STAGE:]
    else:
        last = number(stage.summary.get("best_step")) or (number(rows[-1].get("step")) if rows else None)
        rows = [row for row in rows if number(row.get("step")) == last][:OF_A_STAGE]
    return [
        Exchange(
            message_text(row.get("prompt")),
            clean(row.get("category"), 60),
            [ShownReply(stage_name(name), message_text(row["reply"]), _of_a_sample(row), _tokens(row.get("tokens")))]
            + ([ShownReply("reference", message_text(row["reference"]))] if row.get("reference") else []),
        )
        for row in rows
    ]


def judged_pairs(run: Run, name: str) -> list[Exchange]:
    """The first held-out pairs of a reward stage with the scores of both sides."""
    rows = [row for row in run.stages[name].evals or run.stages[name].samples if "chosen" in row and "rejected" in row]
    return [_judged(rows[at]) for at in in_turn(rows)[:OF_A_STAGE]]


def worst_pairs(run: Run, name: str) -> list[Exchange]:
    """The held-out pairs of a reward stage whose rejected reply scores highest above the chosen one, the worst first.

    With grade, source and tags, since the annotators may be the ones who are wrong.
    """
    rows = scored(run.stages[name])
    worst = most_wrong([float(row["chosen_score"]) - float(row["rejected_score"]) for row in rows], WORST)
    return [_judged(rows[index], with_grade=True) for index in worst]


def _judged(row: Row, *, with_grade: bool = False) -> Exchange:
    known = [clean(row.get("category"), 60), *_tags(row)]
    if with_grade:
        grade = number(row.get("grade"))
        known += [clean(row.get("source"), 60), "" if grade is None else f"grade {grade:g}"]
    return Exchange(
        message_text(row.get("prompt")),
        ", ".join(filter(None, known)),
        [
            ShownReply(side, message_text(row.get(side)), _notes({"score": row.get(f"{side}_score")}, ""))
            for side in ("chosen", "rejected")
        ],
        *2 * (_right(row),),
    )


def in_turn(rows: list[Row]) -> list[int]:
    """Where the rows stand, the first of each category before the second of any, categories in order."""
    seen: Counter[str] = Counter()
    ranked = []
    for at, row in enumerate(rows):
        name = clean(row.get("category"), 60) or NO_CATEGORY
        ranked.append((seen[name], name, at))
        seen[name] += 1
    return [at for _, _, at in sorted(ranked)]


def message_text(prompt: Any) -> str:
    """A prompt or a reply as text: a string as it is, messages with their roles when there is more than one."""
    if not isinstance(prompt, list):
        return clean(prompt, REPLY_CHARACTERS)
    turns = [turn if isinstance(turn, dict) else {"content": turn} for turn in prompt]
    if len(turns) == 1:
        return clean(turns[0].get("content"), REPLY_CHARACTERS)
    said = "\n".join(f"{clean(turn.get('role'), 40)}: {clean(turn.get('content'))}" for turn in turns)
    return clean(said, REPLY_CHARACTERS)


def _tokens(value: Any) -> list[Token]:
    """The first tokens, TOKEN_CHARACTERS in all; none where the row has a number of them, or something else."""
    found: list[Token] = []
    room = TOKEN_CHARACTERS
    for pair in value if isinstance(value, list) else ():
        kl = number(pair[1]) if isinstance(pair, list) and len(pair) == 2 else None
        if kl is None or room <= 0:
            break
        text = clean(pair[0], room)
        room -= len(text)
        strength = sum(abs(kl) >= step for step in KL_STEPS)
        shade = f"{'up' if kl > 0 else 'down'}{strength}" if strength else ""
        found.append(Token(text, shade, f"{kl:+.2f} nats"))
    return found


def _tags(row: Row) -> list[str]:
    tags = row.get("tags")
    return [clean(tag, 40) for tag in tags] if isinstance(tags, list) else []


def _of_a_sample(row: Row) -> list[str]:
    parts = {key: value for key, value in row.items() if key.startswith("score/")}
    return _notes({key: row[key] for key in _OF_A_SAMPLE if key in row} | parts, "")


def _notes(row: Row, prefix: str) -> list[str]:
    """The figures of a reply; the parts of a composed reward are called by their own names."""
    notes = []
    for key, value in row.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in _TOLD_ELSEWHERE:
            continue
        if isinstance(value, bool):
            notes += ["cut off"] if name == "finished" and not value else []
        elif (figure := number(value)) is not None:
            notes.append(f"{clean(name, 40)} {figure:.4g}")
    return notes


def _right(row: Row) -> str:
    chosen, rejected = number(row.get("chosen_score")), number(row.get("rejected_score"))
    return "" if chosen is None or rejected is None else "right" if chosen > rejected else "wrong"
