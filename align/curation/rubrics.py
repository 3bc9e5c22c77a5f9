"""Points by a rubric: what a language model is told, and how its answer becomes a number.

Llama 3 (2407.21783, section 4.2.3) has its model give three points at most to English replies, two to code, and one to
three for how hard a prompt is; it names the criteria and prints no text. The texts are our own, the one for documents
too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.recipe.judge_section import LanguageModelSection
from align.textmodels.asking import Asker, EndpointTask
from data_formats.records import Message
from reward.judges.llm import rubric_in
from reward.judges.question import turn_text

logger = logging.getLogger(__name__)
PIECE = 4096  # texts whose requests are held at the same time

_REPLY = """\
You are shown a conversation and the reply that ends it. Give the reply one point for each of these that holds:
1. It is right. What it claims is true, and what it works out is correct, as far as you can check.
2. It does what was asked: all of it, nothing else, within the limits that were set.
3. It is well put: clear, ordered, in the tone and the language that suit the request, neither padded nor cut short.
Length and politeness are no merits in themselves. No point goes to a reply that is empty, torn, or answers another
question."""

_CODE = """\
You are shown a conversation and the reply that ends it, which holds code. Give it one point for each that holds:
1. The code is free of bugs: it would run, gives the right result, and minds the cases at the edge.
2. It does what the user wants to achieve, and is explained as far as the user needs.
No point goes to code that answers another question."""

_DOCUMENT = """\
You are shown a document. Give it one point for each of these that holds:
1. It is text that somebody wrote for readers: whole sentences, no list of links, no template, no garbled characters.
2. It tells something: facts, explanations, a story or an argument; not advertising alone.
3. One could learn from it: it is right as far as you can check, coherent, and goes into its subject."""

_DIFFICULTY = """\
You are shown a conversation whose last request is yet to be answered. Say how hard it is to answer it well:
1: easy. One step, common knowledge, or text of a usual kind; almost any assistant gets it right.
2: in between. Several steps or requirements, or knowledge that has to be put together.
3: hard. Long reasoning, knowledge of an expert, or many requirements that have to hold at once.
Judge what has to be thought, not how long the request or the answer is."""


@dataclass(frozen=True)
class Rubric:
    """A scale with its meaning.

    Attributes:
        name: of what is given, `quality` or `difficulty`, with what it is given to.
        text: what the language model is told.
        least, most: ends of the scale.
    """

    name: str
    text: str
    least: int
    most: int

    def task(self) -> EndpointTask[float]:
        """The question; its answer is a share of the scale, in [0, 1]."""
        points = {"type": "integer", "enum": [*range(self.least, self.most + 1)]}
        fields = {"reason": {"type": "string"}, "points": points}  # the reason first: what is said later builds on it
        schema = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
        asked = f"{self.text}\nGive the reason in one sentence, then the number, {self.least} to {self.most}."
        return EndpointTask(self.name, asked, schema, self.share)

    def share(self, answer: Any) -> float | None:
        """How far up the scale an answer is; None where it says no number on it."""
        points = answer.get("points") if isinstance(answer, dict) else None
        if isinstance(points, bool) or points not in range(self.least, self.most + 1):
            return None
        return (points - self.least) / (self.most - self.least)

    def asker(self, section: LanguageModelSection, folder: Path | None) -> Asker[float]:
        """Whoever is asked, at the endpoint of a section; answers are kept in `answers-NAME.jsonl` of the folder."""
        options = section.model_dump(exclude={"kind", "rubric", "url", "model"})
        cache = None if folder is None else folder / f"answers-{self.name}.jsonl"
        return Asker(self.task(), section.url, section.model, cache=cache, **options)


REPLY = Rubric("quality_of_replies", _REPLY, 0, 3)
CODE = Rubric("quality_of_code", _CODE, 0, 2)
DOCUMENT = Rubric("quality_of_documents", _DOCUMENT, 0, 3)
DIFFICULTY = Rubric("difficulty", _DIFFICULTY, 1, 3)


def with_own_text(file: str | None, rubrics: Sequence[Rubric]) -> dict[Rubric, Rubric]:
    """The rubric that stands for each: itself, or the first one with the text of a user's file.

    Raises:
        MissingFileError, RunFileError: no such file, or one without text.
    """
    if file is None:
        return {rubric: rubric for rubric in rubrics}
    own = replace(rubrics[0], text=rubric_in(file, "the scorer 'llm'").strip())
    return dict.fromkeys(rubrics, own)


def asked(asker: Asker[float], texts: Sequence[str]) -> list[float | None]:
    """What is said of each text; the log says of how many nothing, and what it cost. Errors as of `Asker.ask`."""
    found = [one for at in range(0, len(texts), PIECE) for one in asker.ask(texts[at : at + PIECE])]
    usage = asker.usage
    logger.info(
        "%s: %d requests, %d answers from before, %d unread, %d refused; %d and %d tokens",
        *(asker.task.name, usage.requests, usage.cached, usage.unread, usage.refused),
        *(usage.prompt_tokens, usage.completion_tokens),
    )
    return found


def shown(turns: Sequence[Message], tools: Sequence[str] = ()) -> str:
    """A conversation as a text, each turn under its role, behind the tools on offer."""
    offered = ["\n".join(("[tools on offer]", *tools))] if tools else []
    return "\n".join([*offered, *(f"[{turn.role}]\n{turn_text(turn)}" for turn in turns)])
