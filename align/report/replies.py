"""Sample replies for the page: the first ones of each category, not hand-picked. Escaping is the template's work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from align.evaluation.accuracy import most_wrong
from align.report.accuracy import scored
from align.report.policy_evaluation import AFTER, BEFORE, NO_CATEGORY, judge_of
from align.runs.run_files import Row, Run, clean, number

MOST, OF_A_STAGE, WORST = 20, 8, 10
REPLY_CHARACTERS = 1500
KL_STEPS = (0.5, 1.0, 2.0)  # nats at which a token's shade gets stronger: odds of 1.6, 2.7 and 7.4
_TOLD_ELSEWHERE = ("reply", "text")
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
    """One side: who says it, the text, small figures under it, and its tokens where they are known."""

    who: str
    text: str
    notes: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A prompt and the replies that stand side by side; `verdict` is win, tie, loss or empty."""

    prompt: str
    category: str
    replies: list[ShownReply]
    verdict: str = ""


def compared(run: Run) -> list[Exchange]:
    """Replies of SFT and PPO to the same held-out prompts, greedy."""
    stage = run.stages["ppo"]
    rows = [row for row in stage.evals if f"{BEFORE}_reply" in row and f"{AFTER}_reply" in row]
    judge = judge_of(stage)
    return [
        Exchange(
            prompt_text(row.get("prompt")),
            clean(row.get("category"), 60),
            [ShownReply(who, _reply(row[f"{who}_reply"]), _notes(row, f"{who}_")) for who in (BEFORE, AFTER)],
            _verdict(row, judge),
        )
        for row in spread(rows)
    ]


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
            prompt_text(row.get("prompt")),
            clean(row.get("category"), 60),
            [ShownReply(name, _reply(row["reply"]), _notes(row, "", _OF_A_SAMPLE), _tokens(row.get("tokens")))]
            + ([ShownReply("reference", _reply(row["reference"]))] if row.get("reference") else []),
        )
        for row in rows
    ]


def judged_pairs(run: Run, name: str) -> list[Exchange]:
    """The first held-out pairs of a reward stage with the scores of both sides."""
    rows = [row for row in run.stages[name].evals or run.stages[name].samples if "chosen" in row and "rejected" in row]
    return [_judged(row) for row in spread(rows)[:OF_A_STAGE]]


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
        clean(prompt_text(row.get("prompt")), REPLY_CHARACTERS),
        ", ".join(filter(None, known)),
        [
            ShownReply(side, _reply(row.get(side)), _notes({"score": row.get(f"{side}_score")}, ""))
            for side in ("chosen", "rejected")
        ],
        _right(row),
    )


def spread(rows: list[Row]) -> list[Row]:
    """The first rows of each category in turn, MOST in all, in order of category."""
    seen: Counter[str] = Counter()
    ranked = []
    for row in rows:
        name = clean(row.get("category"), 60) or NO_CATEGORY
        ranked.append((seen[name], name, row))
        seen[name] += 1
    chosen = sorted(ranked, key=lambda one: one[:2])[:MOST]
    return [row for _, _, row in sorted(chosen, key=lambda one: (one[1], one[0]))]


def prompt_text(prompt: Any) -> str:
    """A prompt as text: a string as it is, messages with their roles when there is more than one."""
    if not isinstance(prompt, list):
        return clean(prompt)
    turns = [turn if isinstance(turn, dict) else {"content": turn} for turn in prompt]
    if len(turns) == 1:
        return clean(turns[0].get("content"))
    return "\n".join(f"{clean(turn.get('role'), 40)}: {clean(turn.get('content'))}" for turn in turns)


def _reply(value: Any) -> str:
    if isinstance(value, list):
        return clean(prompt_text(value), REPLY_CHARACTERS)
    return clean(value, REPLY_CHARACTERS)


def _tokens(value: Any) -> list[Token]:
    """The first tokens, REPLY_CHARACTERS in all; none where the row has a number of them, or something else."""
    found: list[Token] = []
    room = REPLY_CHARACTERS
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


def _notes(row: Row, prefix: str, only: tuple[str, ...] | None = None) -> list[str]:
    notes = []
    for key, value in row.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in _TOLD_ELSEWHERE or (only is not None and name not in only):
            continue
        if isinstance(value, bool):
            notes += ["cut off"] if name == "finished" and not value else []
        elif (figure := number(value)) is not None:
            notes.append(f"{clean(name, 40)} {figure:.4g}")
    return notes


def _verdict(row: Row, judge: str | None) -> str:
    before, after = (number(row.get(f"{who}_{judge}")) for who in (BEFORE, AFTER))
    if judge is None or before is None or after is None:
        return ""
    return "win" if after > before else "loss" if after < before else "tie"


def _right(row: Row) -> str:
    chosen, rejected = number(row.get("chosen_score")), number(row.get("rejected_score"))
    return "" if chosen is None or rejected is None else "right" if chosen > rejected else "wrong"
