"""Formats of scored replies: k-way ratings, votes, unpaired labels, steps; and the comparisons that follow from them.

Formats here are read as `Scored`, and as `Comparison` through all pairs of replies of different score: ties are left
out and counted, the grade is the difference of the scores. Votes become round(log2(1 + votes)), -1 where they are
negative, and 1 more for the accepted answer (Askell et al. 2021, appendix C.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

from data_formats.comparisons import is_list_of_texts, same
from data_formats.context import asked, judged, with_system
from data_formats.demonstrations import alpaca_prompt
from data_formats.errors import DataError
from data_formats.fields import Fields, objects
from data_formats.formats import (
    EMPTY_REPLIES,
    TIED_PAIRS,
    Dropped,
    Format,
    Notes,
    as_text,
    flag,
    label,
    optional_number,
    shown,
    source_of,
    tags_of,
    text_field,
)
from data_formats.loss import drop_without_loss
from data_formats.records import Comparison, Message, Reply, Scored, Step
from data_formats.tools import read_tools
from data_formats.transcripts import reply_after
from data_formats.turns import Turns, as_prompt, read_turns, reasoning_of


def vote_score(votes: float, accepted: bool) -> float:
    """The score of an answer with so many votes."""
    return float((-1 if votes < 0 else round(math.log2(1 + votes))) + bool(accepted))


def scored_of(row: dict[str, Any], prompt: Turns, replies: list[Reply], notes: Notes) -> Scored:
    drop_without_loss(row)
    kept = tuple(reply for reply in replies if reply.content.strip())
    if not kept:
        raise Dropped("empty reply" if replies else "no reply")
    notes[EMPTY_REPLIES] += len(replies) - len(kept)
    about = (label(row, "category", notes), source_of(row), tags_of(row), read_tools(row, notes))
    return Scored(prompt, kept, *about)


def pairs(scored: Scored, notes: Notes) -> tuple[Comparison, ...]:
    """All pairs of replies of different score, the better one chosen.

    Raises:
        Dropped: no two replies have different scores.
    """
    made = []
    rated = [reply for reply in scored.replies if reply.score is not None]
    for first, second in combinations(rated, 2):
        if first.score == second.score or same(first.turn, second.turn):
            notes[TIED_PAIRS] += 1
            continue
        good, bad = (first, second) if first.score > second.score else (second, first)
        grade = good.score - bad.score
        about = (scored.category, scored.source, scored.tags, scored.tools, good.reasoning, bad.reasoning)
        made.append(Comparison(scored.prompt, good.content, bad.content, grade, *about))
    if not made:
        raise Dropped("a single reply" if len(rated) < 2 else "tie")
    return tuple(made)


def parse_kto(row: dict[str, Any], notes: Notes) -> Scored:
    """`messages` ending with a reply, and `label`: whether it is desirable (LLaMA-Factory's KTO rows)."""
    score = float(flag(row, "label"))
    prompt, reply = judged(row, "messages", notes)
    return scored_of(row, prompt, [_reply(reply, score)], notes)


def _reply(turn: Message, score: float | None) -> Reply:
    if turn.tool_calls:
        raise Dropped("reply is a tool call")  # a scored reply is text
    return Reply(turn.content, score, reasoning=turn.reasoning)


def parse_unpaired(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt`, `completion` (a string or turns) and `label` (TRL's unpaired preference)."""
    completion, score = row["completion"], float(flag(row, "label"))
    if isinstance(completion, list):
        turns = read_turns(completion, "completion", notes)
        if len(turns) != 1 or turns[0].role != "assistant":
            raise DataError(f"expected one turn of the assistant, found {shown(completion)}", field="completion")
        turn = turns[0]
    else:
        text = reply_after(row["prompt"], as_text(completion, "completion", notes))
        turn = Message("assistant", text, reasoning_of(row, "", notes))
    return scored_of(row, asked(row, "prompt", notes), [_reply(turn, score)], notes)


def parse_ultrafeedback(row: dict[str, Any], notes: Notes) -> Scored:
    """`instruction` and `completions`: [{response, overall_score or fine-grained_score}]."""
    replies = []
    for item in objects(row, "completions", notes):
        field = "overall_score" if item.get("overall_score") is not None else "fine-grained_score"
        replies.append(Reply(text_field(item, "response", notes), optional_number(item, field)))
    return scored_of(row, alpaca_prompt(row, notes), replies, notes)


def _step(item: dict[str, Any], notes: Notes) -> Step:
    return Step(text_field(item, "text", notes), optional_number(item, "rating"))


def attributes_of(row: Any, notes: Notes, names: Sequence[str] | None = None) -> tuple[tuple[str, float], ...]:
    """The ratings of an object, in its order or that of the names looked for; those it lacks are left out.

    Raises:
        DataError: no object, or a rating that is no number.
    """
    if not isinstance(row, dict):
        raise DataError(f"expected {{name: number}}, found {shown(row)}", field="attributes")
    said = [(as_text(name, "attributes", notes), optional_number(row, name)) for name in names or list(row)]
    return tuple((name, number) for name, number in said if number is not None)


def parse_replies(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt`, `replies`: [{content, score, attributes: {name: number}, steps: [{text, rating}]}] (our own rows).

    What `align collect` writes has `reply` in place of `content` and no score, and its provenance is left to those who
    read it as that.
    """
    row.get("round")
    replies = [_own_reply(item, notes) for item in objects(row, "replies", notes)]
    return scored_of(row, asked(row, "prompt", notes), replies, notes)


def _own_reply(item: Fields, notes: Notes) -> Reply:
    collected = "reply" in item and "content" not in item
    if collected:
        item.get("sampling"), item.get("weights")
    return Reply(
        text_field(item, "reply" if collected else "content", notes),
        optional_number(item, "score"),
        tuple(_step(step, notes) for step in (objects(item, "steps", notes) if item.get("steps") else ())),
        reasoning_of(item, item.at, notes),
        attributes_of(item.get("attributes") or {}, notes),
    )


def parse_sampled(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt` and `reply`, and perhaps its `score` (our own `samples.jsonl`, and what `align score` writes)."""
    reply = Reply(text_field(row, "reply", notes), optional_number(row, "score"))
    return scored_of(row, asked(row, "prompt", notes), [reply], notes)


def parse_completions(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt` and `completions`, a list of texts that a model gave to it: replies without a score."""
    texts = [as_text(text, f"completions[{at}]", notes) for at, text in enumerate(row["completions"])]
    return scored_of(row, asked(row, "prompt", notes), [Reply(text) for text in texts], notes)


def parse_judged(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt`, `POLICY_reply` of each policy, `sampled`: {POLICY: [{reply}]} (our own `eval.jsonl` of policies)."""
    replies = [Reply(text_field(row, name, notes)) for name in _greedy(row)]
    for name, sampled in (row.get("sampled") or {}).items():
        replies += [Reply(text_field(item, "reply", notes)) for item in objects({name: sampled}, name, notes)]
    return scored_of(row, asked(row, "prompt", notes), replies, notes)


def _greedy(row: dict[str, Any]) -> list[str]:
    return [name for name, value in row.items() if name.endswith("_reply") and isinstance(value, str)]


def _is_judged(row: dict[str, Any]) -> bool:
    return bool(_greedy(row)) and isinstance(row.get("sampled") or {}, dict)


def parse_shp(row: dict[str, Any], notes: Notes) -> Scored:
    """`history`, `human_ref_A`, `human_ref_B`, `score_A`, `score_B`: Reddit votes, kept as they are."""
    sides = ("A", "B")
    replies = [
        Reply(text_field(row, f"human_ref_{side}", notes), optional_number(row, f"score_{side}")) for side in sides
    ]
    prompt = with_system(row, as_prompt(text_field(row, "history", notes), "history", notes), notes)
    return scored_of(row, prompt, replies, notes)


def parse_posts(row: dict[str, Any], notes: Notes) -> Scored:
    """`question` and `answers`: [{text, pm_score, or score (votes) and selected or accepted}]."""
    replies = []
    for item in objects(row, "answers", notes):
        score, votes = optional_number(item, "pm_score"), optional_number(item, "score")
        if score is None and votes is not None:
            score = vote_score(votes, item.get("selected") is True or item.get("accepted") is True)
        replies.append(Reply(text_field(item, "text", notes), score))
    return scored_of(row, asked(row, "question", notes, text_field(row, "question", notes)), replies, notes)


def _solutions(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    fields = {"is_correct", "solution"}
    return [(name, value) for name, value in row.items() if isinstance(value, dict) and fields <= value.keys()]


def parse_solutions(row: dict[str, Any], notes: Notes) -> Scored:
    """`question`, `ground_truth` and named {is_correct, solution}: 1 for a right solution, 0 for a wrong one."""
    items = [row[name] for name, _ in _solutions(row)]
    replies = [Reply(text_field(item, "solution", notes), float(flag(item, "is_correct"))) for item in items]
    return scored_of(row, asked(row, "question", notes), replies, notes)


def parse_edited(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt` and `edited` > `chosen` > `rejected`: ranks 2, 1, 0."""
    ranked = zip(("edited", "chosen", "rejected"), (2.0, 1.0, 0.0), strict=True)
    replies = [Reply(text_field(row, field, notes), score) for field, score in ranked]
    return scored_of(row, asked(row, "prompt", notes), replies, notes)


def parse_prm800k(row: dict[str, Any], notes: Notes) -> Scored:
    """`question.problem` and `label.steps` (Lightman et al. 2023): the steps on the labeller's path, one a line.

    A step is the chosen completion, the labeller's own where none was good (no rating), else the first.
    """
    question, judgement = Fields(row["question"], "question"), Fields(row["label"], "label")
    steps = []
    for item in objects(judgement, "steps", notes):
        tried = objects(item, "completions", notes) if item.get("completions") else ()
        completions = [_step(completion, notes) for completion in tried]
        at, own = item.get("chosen_completion"), item.get("human_completion")
        if isinstance(at, int) and not 0 <= at < len(completions):
            raise DataError(f"there is no completion {at}", field="label.steps.chosen_completion")
        if not isinstance(at, int) and isinstance(own, dict | str):
            steps.append(Step(text_field(own if isinstance(own, dict) else {"text": own}, "text", notes)))
        elif completions:
            steps.append(completions[at if isinstance(at, int) else 0])
    reply = Reply("\n".join(step.text for step in steps), None, tuple(steps))
    prompt = asked(row, "question", notes, text_field(question, "problem", notes))
    for part in (question, judgement):
        part.pass_over(notes)
    return scored_of(row, prompt, [reply], notes)


def parse_predictions(row: dict[str, Any], notes: Notes) -> tuple[Comparison, ...]:
    """`question`, `passages`, `prediction 1` to `4` and six pairwise preferences (FineGrainedRLHF, Wu et al. 2023).

    The prompt is the question and, below, the passages it is to be answered from. The preferences are of the pairs
    (1,2), (1,3), ... (3,4): 0 a tie, 1 the first better, 2 the second; they need not be transitive, so there is no
    score a reply and no `Scored`.
    """
    verdicts = row["preference"]
    if not isinstance(verdicts, list) or len(verdicts) != 6 or not all(item in (0, 1, 2) for item in verdicts):
        raise DataError(f"expected six times 0, 1 or 2, found {shown(verdicts)}", field="preference")
    prompt = asked(row, "question", notes, text_field(row, "question", notes))
    replies = [text_field(row, f"prediction {number}", notes) for number in range(1, 5)]
    made, tools = [], read_tools(row, notes)
    for (first, second), verdict in zip(combinations(replies, 2), verdicts, strict=True):
        if verdict == 0 or first.strip() == second.strip() or not first.strip() or not second.strip():
            notes[TIED_PAIRS] += 1
            continue
        chosen, rejected = (first, second) if verdict == 1 else (second, first)
        made.append(Comparison(prompt, chosen, rejected, source=source_of(row), tools=tools))
    if not made:
        raise Dropped("tie")
    return tuple(made)


def _compared(
    parse: Callable[[Any, Notes], Scored | tuple[Scored, ...]], row: Any, notes: Notes
) -> tuple[Comparison, ...]:
    made = parse(row, notes)
    if isinstance(made, Scored):
        return pairs(made, notes)
    found, reason = [], Dropped("no reply")
    for scored in made:
        try:
            found += pairs(scored, notes)
        except Dropped as dropped:
            reason = dropped
    if not found:
        raise reason
    return tuple(found)


def compared(known: Format) -> Format:
    """A format of scored replies, read as the comparisons that follow from it."""
    return replace(known, kind=Comparison, parse=partial(_compared, known.parse))


def _has_posts(row: dict[str, Any]) -> bool:
    """Whether `answers` are no texts, which would be right answers to a prompt."""
    return not row["answers"] or not is_list_of_texts(row["answers"])


def _has_texts(row: dict[str, Any]) -> bool:
    return is_list_of_texts(row["completions"])


def _is_prm800k(row: dict[str, Any]) -> bool:
    return isinstance(row["question"], dict) and isinstance(row["label"], dict) and "steps" in row["label"]


_SHP = frozenset({"history", "human_ref_A", "human_ref_B", "score_A", "score_B"})
_EDITED = frozenset({"prompt", "edited", "chosen", "rejected"})
_TRIED = frozenset({"question", "ground_truth"})
_SCORED = (
    Format("kto", Scored, frozenset({"messages", "label"}), parse_kto),
    Format("unpaired", Scored, frozenset({"prompt", "completion", "label"}), parse_unpaired),
    Format("ultrafeedback", Scored, frozenset({"instruction", "completions"}), parse_ultrafeedback),
    Format("replies", Scored, frozenset({"prompt", "replies"}), parse_replies),
    Format("sampled", Scored, frozenset({"prompt", "reply"}), parse_sampled),
    Format("completions", Scored, frozenset({"prompt", "completions"}), parse_completions, _has_texts),
    Format("judged", Scored, frozenset({"prompt"}), parse_judged, _is_judged),
    Format("shp", Scored, _SHP, parse_shp),
    Format("posts", Scored, frozenset({"question", "answers"}), parse_posts, _has_posts),
    Format("solutions", Scored, _TRIED, parse_solutions, lambda row: bool(_solutions(row))),
    Format("edited", Scored, _EDITED, parse_edited),
    Format("prm800k", Scored, frozenset({"question", "label"}), parse_prm800k, _is_prm800k),
)
# One reply a row, or none with a score: nothing to compare.
_SINGLE = ("kto", "unpaired", "prm800k", "sampled", "completions", "judged")
_PREDICTIONS = frozenset({"question", "preference", *(f"prediction {number}" for number in range(1, 5))})
FORMATS = (
    *_SCORED,
    *(compared(known) for known in _SCORED if known.name not in _SINGLE),
    Format("predictions", Comparison, _PREDICTIONS, parse_predictions),
)
