"""Formats of replies rated by people: HelpSteer 2, BeaverTails, Nectar, WebGPT, OpenAI's summaries.

HelpSteer 2 and BeaverTails have a reply a row; those to one prompt stand below each other and are read as one, which
gives their pairs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from data_formats.comparisons import comparison_of
from data_formats.context import asked, with_system
from data_formats.demonstrations import question_turns
from data_formats.errors import DataError
from data_formats.fields import Fields, objects
from data_formats.formats import Dropped, Format, Notes, as_text, flag, label, optional_number, shown, text_field
from data_formats.loss import drop_without_loss
from data_formats.neighbours import Neighbours, by
from data_formats.records import Comparison, Message, Reply, Scored
from data_formats.scored import attributes_of, compared, scored_of
from data_formats.tools import read_tools
from data_formats.turns import Turns, as_prompt, prompt_turns
from data_formats.verdicts import better_of, question_of

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # the first is the score
AXES = ("overall", "accuracy", "coverage", "coherence", "compatible")
_POST = (("subreddit", "SUBREDDIT: r/"), ("title", "TITLE: "), ("post", "POST: "))


def _one_prompt(rows: Neighbours, replies: list[Reply], prompts: list[Turns], notes: Notes) -> Scored:
    """The replies of rows that have one prompt; what else the record says is the first row's.

    Raises:
        Dropped: the prompts differ in what stands around them (`system`, `tools`), or a row is not to be learnt.
    """
    around = rows.each(lambda row: (read_tools(row, notes), label(row, "category", notes)))
    for row in rows:
        drop_without_loss(row)
        row.get("tags")
    if any(prompt != prompts[0] for prompt in prompts) or any(tools != around[0][0] for tools, _ in around):
        raise Dropped("prompts differ")
    return scored_of(rows[0], prompts[0], replies, notes)


def parse_helpsteer(rows: Neighbours, notes: Notes) -> Scored:
    """`prompt`, `response` and five attributes from 0 to 4 (HelpSteer 2, Wang et al. 2024); scored by helpfulness."""

    def reply(row: dict[str, Any]) -> Reply:
        given = attributes_of(row, notes, HELPSTEER)
        return Reply(text_field(row, "response", notes), dict(given).get(HELPSTEER[0]), attributes=given)

    replies = rows.each(reply)
    prompts = rows.each(lambda row: asked(row, "prompt", notes))
    return _one_prompt(rows, replies, prompts, notes)


def parse_rated(rows: Neighbours, notes: Notes, field: str) -> Scored:
    """A prompt, `response` and its number; the replies to one prompt stand below each other."""

    def reply(row: dict[str, Any]) -> Reply:
        return Reply(text_field(row, "response", notes), optional_number(row, field))

    replies = rows.each(reply)
    prompts = rows.each(lambda row: question_turns(row, question_of(row), notes))
    return _one_prompt(rows, replies, prompts, notes)


def _harms(row: dict[str, Any]) -> tuple[str, ...]:
    """The kinds of harm that BeaverTails (`category`) and PKU-SafeRLHF-QA (`harm_category`) find in a reply."""
    named = row.get("category") if isinstance(row.get("category"), dict) else row.get("harm_category")
    return tuple(name for name, found in named.items() if found is True) if isinstance(named, dict) else ()


def parse_beavertails(rows: Neighbours, notes: Notes) -> Scored:
    """`prompt`, `response`, `is_safe`: 1 for a safe reply, 0 for another; the kinds of harm become attributes of 1."""

    def reply(row: dict[str, Any]) -> Reply:
        harms = tuple((name, 1.0) for name in _harms(row))
        return Reply(text_field(row, "response", notes), float(flag(row, "is_safe")), attributes=harms)

    replies = rows.each(reply)
    prompts = rows.each(lambda row: asked(row, "prompt", notes))
    if harms := dict.fromkeys(name for one in replies for name, _ in one.attributes):
        rows[0]["category"] = list(harms)
    return _one_prompt(rows, replies, prompts, notes)


def _is_ranked(row: dict[str, Any]) -> bool:
    answers = row["answers"]
    return (
        isinstance(answers, list) and bool(answers) and all(isinstance(one, dict) and "rank" in one for one in answers)
    )


def parse_nectar(row: dict[str, Any], notes: Notes) -> Scored:
    """`prompt` (an HH transcript) and `answers`: [{answer, rank}], rank 1 the best (Nectar): the score is -rank."""
    replies = []
    for item in objects(row, "answers", notes):
        rank = optional_number(item, "rank")
        replies.append(Reply(text_field(item, "answer", notes), None if rank is None else 0.0 - rank))
    for field in ("turns", "num_responses", "good_natured"):
        row.get(field)
    return scored_of(row, asked(row, "prompt", notes), replies, notes)


def question_text(row: dict[str, Any], notes: Notes) -> str:
    """`question`, a text or WebGPT's {full_text}."""
    question = row["question"]
    if not isinstance(question, dict):
        return as_text(question, "question", notes)
    return as_text(question.get("full_text"), "question.full_text", notes)


def parse_webgpt(row: dict[str, Any], notes: Notes) -> Scored:
    """`question`, `answer_0`, `answer_1`, `score_0`, `score_1` (WebGPT); each side's own quotes are passed over."""
    replies = [Reply(text_field(row, f"answer_{at}", notes), optional_number(row, f"score_{at}")) for at in (0, 1)]
    for at in (0, 1):
        row.get(f"tokens_{at}")
    return scored_of(row, asked(row, "question", notes, question_text(row, notes)), replies, notes)


def summary_prompt(row: dict[str, Any], notes: Notes) -> Turns:
    """What is to be summarised, laid out as in Stiennon et al. 2020: a Reddit post, or an article."""
    info = row["info"]
    if not isinstance(info, dict):
        raise DataError(f"expected an object with post or article, found {shown(info)}", field="info")
    info = Fields(info, "info")
    info.get("site")
    if info.get("article") is not None:
        title = f"TITLE: {as_text(info['title'], 'info.title', notes)}\n\n" if info.get("title") else ""
        text = f"{title}Article: {as_text(info['article'], 'info.article', notes)}\n\nTL;DR:"
    else:
        as_text(info.get("post"), "info.post", notes)
        given = [(name, head) for name, head in _POST if info.get(name) is not None]
        parts = [f"{head}{as_text(info[name], f'info.{name}', notes)}" for name, head in given]
        text = "\n\n".join((*parts, "TL;DR:"))
    info.pass_over(notes)
    return with_system(row, as_prompt(text, "info", notes), notes)


def parse_summaries(row: dict[str, Any], notes: Notes) -> Comparison:
    """`info`, `summaries`: [{text}, {text}] and `choice`, 0 or 1 (OpenAI's summarize-from-feedback, comparisons)."""
    summaries = []
    for item in objects(row, "summaries", notes):
        item.get("note")
        summaries.append(Message("assistant", text_field(item, "text", notes)))
    if len(summaries) != 2:
        raise DataError(f"expected two summaries, found {len(summaries)}", field="summaries")
    better = better_of(row["choice"], "choice", ("summary_0", "summary_1"))
    row.get("extra")  # the annotator's confidence
    return comparison_of(row, summary_prompt(row, notes), summaries[better], summaries[1 - better], notes)


def parse_summary_axes(rows: Neighbours, notes: Notes) -> Scored:
    """`info` and `summary`: {text, axes: {overall, accuracy …}} (summarize-from-feedback, axis); scored by overall."""

    def reply(row: dict[str, Any]) -> Reply:
        summary = row["summary"]
        if not isinstance(summary, dict) or not isinstance(summary.get("axes"), dict):
            raise DataError(f"expected {{text, axes}}, found {shown(summary)}", field="summary")
        given = attributes_of(summary["axes"], notes, AXES)
        return Reply(as_text(summary.get("text"), "summary.text", notes), dict(given).get(AXES[0]), attributes=given)

    replies = rows.each(reply)
    prompts = rows.each(lambda row: summary_prompt(row, notes))
    return _one_prompt(rows, replies, prompts, notes)


def _asked_of(row: Any) -> Any:
    return row.get(question_of(row) or "") if isinstance(row, dict) else None


def _is_rated(row: dict[str, Any]) -> bool:
    return question_of(row) in QUESTIONS


def parse_labelled(row: dict[str, Any], notes: Notes) -> Scored:
    """A prompt, `response` and `label`: whether it is desirable (unpaired, as `prompt`, `completion`, `label`)."""
    reply = Reply(text_field(row, "response", notes), float(flag(row, "label")))
    return scored_of(row, question_turns(row, question_of(row), notes), [reply], notes)


def parse_edit(row: dict[str, Any], notes: Notes, better: str, worse: str) -> Comparison:
    """`context` (turns), and an edited reply above its original, or a good edit above a bad one (HelpSteer 3)."""
    prompt = prompt_turns(with_system(row, as_prompt(row["context"], "context", notes), notes), notes)
    sides = [Message("assistant", text_field(row, field, notes)) for field in (better, worse)]
    if better != "edited_response":
        row.get("original_response")
    return comparison_of(row, prompt, sides[0], sides[1], notes)


QUESTIONS = ("prompt", "question", "query", "instruction")
_EDITS = (
    ("edit", "edited_response", "original_response"),
    ("edit_quality", "good_edited_response", "bad_edited_response"),
)
_SIDES = frozenset({"answer_0", "answer_1", "score_0", "score_1"})
_SCORED = (
    Format("helpsteer", Scored, frozenset({"prompt", "response", "helpfulness"}), parse_helpsteer, group=by("prompt")),
    Format("beavertails", Scored, frozenset({"prompt", "response", "is_safe"}), parse_beavertails, group=by("prompt")),
    Format("nectar", Scored, frozenset({"prompt", "answers"}), parse_nectar, _is_ranked),
    *(
        Format(
            f"by_{field}",
            Scored,
            frozenset({"response", field}),
            partial(parse_rated, field=field),
            _is_rated,
            _asked_of,
        )
        for field in ("score", "rating")
    ),
    Format("webgpt", Scored, _SIDES | {"question"}, parse_webgpt),
    Format("summary_axes", Scored, frozenset({"info", "summary"}), parse_summary_axes, group=by("info")),
)
FORMATS = (
    Format("labelled", Scored, frozenset({"response", "label"}), parse_labelled, _is_rated),
    *_SCORED,
    *(compared(known) for known in _SCORED),
    *(
        Format(name, Comparison, frozenset({"context", better, worse}), partial(parse_edit, better=better, worse=worse))
        for name, better, worse in _EDITS
    ),
    Format("summaries", Comparison, frozenset({"info", "summaries", "choice"}), parse_summaries),
)
