"""A conversation as the tokenizer's own chat template writes it, in pieces.

The template is rendered with what people wrote in it as it is, but for the names of control tokens, which are broken
by a character that stands in no text and that goes out again afterwards: so a control token in what was rendered is
always the template's, and the text between two of them is encoded as text, by the copy of the tokenizer that knows
none (`data_formats.chatml.encoding`). That is what the server gets, token by token, and no user can forge a turn with
a token. (Where a template frames turns with plain text, such as Llama 2's `[INST]`, anybody can write that.)

What has loss is found by prefixes: a reply begins where the same template ends with the turns before it and the opening
of a reply (`add_generation_prompt`), and what stands there must be what it writes of the same reply as the last one. A
template that writes it in another way, or the turns before it, rewrites what was said earlier (Qwen3 takes thinking
out of earlier replies): a model trained on that would be trained on what it is never served with, so it is refused.
(Departure from trl and transformers, which read masks from `{% generation %}` in the template: few have it, and it says
nothing about the prompt. A test compares the two where there is one.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from data_formats import chatml
from data_formats.chat_format.base import ChatFormat, require_reply_mask
from data_formats.chatml import Piece, TemplateError, render_template
from data_formats.chatml.plain import plain_tokenizer
from data_formats.chatml.probe import CONVERSATIONS, as_dict, parted
from data_formats.errors import DataError
from data_formats.records import Message

ASKED = Message("user", "?")
_HEAD = "{% set whole %}"
_TAIL = (
    "{%% endset %%}{{ whole if add_generation_prompt or messages[-1].role != 'assistant' "
    "else whole.rpartition(%(end)s)[0] + %(end)s }}"
)
_CONTROLS: WeakKeyDictionary[Any, tuple[int, _Controls]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Controls:
    """The control tokens of a tokenizer: a pattern that finds them in text, one that finds where their names begin, and
    which of them swallow white space before or behind them."""

    found: re.Pattern[str]
    begun: re.Pattern[str]
    before: frozenset[str]
    behind: frozenset[str]


def _controls(tokenizer: Any) -> _Controls:
    if _CONTROLS.get(tokenizer, (0,))[0] != len(tokenizer):
        ids = plain_tokenizer(tokenizer).controls
        tokens = [token for id_, token in tokenizer.added_tokens_decoder.items() if id_ in ids]
        names = "|".join(re.escape(name) for name in sorted((str(token) for token in tokens), key=len, reverse=True))
        _CONTROLS[tokenizer] = (
            len(tokenizer),
            _Controls(
                re.compile(names or r"(?!)"),
                re.compile(f"(?=(?:{names}))" if names else r"(?!)"),
                frozenset(str(token) for token in tokens if token.lstrip),
                frozenset(str(token) for token in tokens if token.rstrip),
            ),
        )
    return _CONTROLS[tokenizer][1]


class OwnTemplate(ChatFormat):
    """The tokenizer's chat template; `stops` begin with the token it writes behind a reply."""

    name = "own"

    @property
    def scoring_template(self) -> str:
        """The template without what it writes behind the last reply's end token."""
        template = self.tokenizer.chat_template
        return template if template.startswith(_HEAD) else _HEAD + template + _tail(self.stops[0])

    def render(
        self,
        messages: Iterable[Message],
        *,
        tools: Sequence[str] = (),
        mask: str = "assistant_only",
        thinking: str = "keep",
        add_generation_prompt: bool = False,
    ) -> list[Piece]:
        """As of the base class; `thinking`: "drop" leaves it out, else the template decides.

        Raises:
            DataError: the template fails on these turns, or rewrites some that have loss.
        """
        require_reply_mask(mask, self.name)
        turns = tuple(messages)
        if thinking == "drop":
            turns = tuple(replace(turn, reasoning="") for turn in turns)
        text, guard = self._text(turns, tools, add_generation_prompt)
        if add_generation_prompt:
            return self._pieces(text, guard)
        spans, exchange = [], 0
        last = max((at for at, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
        for at, turn in enumerate(turns):
            exchange += turn.role == "user"
            if turn.role == "assistant" and turn.loss and (mask != "last_turn_only" or at == last):
                start = len(self._before(text, turns, at, tools, guard))
                spans.append((start, self._end_of(text, start, turn, at, guard), max(exchange, 1)))
        return self._pieces(text, guard, spans)

    def render_reply(self, reply: Message) -> list[Piece]:
        """As of the base class."""
        opening, said, guard = self._reply(reply)
        pieces = self._pieces(opening + said, guard, [(len(opening), len(opening) + len(said), 1)])
        return [replace(piece, turn=0) for piece in pieces if piece.turn]

    def default_system_turn(self) -> Message | None:
        """None: the template writes it."""
        return None

    def encode_replies(self, texts: Sequence[str]) -> list[list[int]]:
        """As of the base class."""
        opening = self.render((ASKED,), add_generation_prompt=True)
        before = len(self.encode([opening])[0])
        replies = chatml.with_reasoning(Message("assistant", text) for text in texts)
        return [ids[before:] for ids in self.encode([*opening, *self.render_reply(reply)] for reply in replies)]

    def speaks_like(self, other: ChatFormat) -> bool:
        """As of the base class."""
        return super().speaks_like(other) and self.scoring_template == other.scoring_template

    def _first(self) -> str | None:
        return ""  # the template writes it

    def _before(self, text: str, turns: Sequence[Message], at: int, tools: Sequence[str], guard: str) -> str:
        before = self._text(turns[:at], tools, True, guard)[0]
        if text.startswith(before):
            return before
        raise DataError(
            f"the chat template rewrites earlier turns: it writes what comes before turn {at + 1} in another way once "
            "it is answered and the conversation goes on, so that reply would be trained on a prompt that is never "
            "served; set sft.mask to last_turn_only, or model.tokenizer.template to chatml"
        )

    def _end_of(self, text: str, start: int, turn: Message, at: int, guard: str) -> int:
        said = self._reply(turn, guard)[1]
        if text.startswith(said, start):
            return start + len(said)
        raise DataError(
            f"the chat template rewrites earlier turns: turn {at + 1} is written in another way once the conversation "
            "goes on (thinking that is taken out, for instance), so it would be trained as it is never generated; set "
            "sft.mask to last_turn_only, or model.tokenizer.template to chatml"
        )

    def _reply(self, reply: Message, guard: str | None = None) -> tuple[str, str, str]:
        """The opening of a lone question's answer, what is written of the reply behind it, its end token included, and
        the guard."""
        whole, guard = self._text((ASKED, reply), (), False, guard)
        opening = self._text((ASKED,), (), True, guard)[0]
        end = self.stops[0]
        at = whole.find(end, len(opening))
        if not whole.startswith(opening) or at < 0:
            raise TemplateError(
                "the tokenizer's chat template opens a reply in another way than it writes one afterwards "
                f"({opening[-40:]!r} is not how a conversation with a reply begins), or puts no {end} behind it"
            )
        return opening, whole[len(opening) : at + len(end)], guard

    def _text(
        self, turns: Sequence[Message], tools: Sequence[str], opened: bool, guard: str | None = None
    ) -> tuple[str, str]:
        """What the template writes, names of control tokens in what people wrote broken by the guard; the guard."""
        written = [part for turn in turns for part in (turn.content, turn.reasoning)]
        if guard is None:
            everything = "".join([*written, *tools])
            guard = next(mark for mark in map(chr, range(0xFDD0, 0xFDF0)) if mark not in everything)
        pattern = _controls(self.tokenizer).begun
        messages = [self._message(turn, pattern, guard) for turn in turns]
        offered = [json.loads(_broken(tool, pattern, guard)) for tool in tools] or None
        return render_template(self.tokenizer, messages, tools=offered, add_generation_prompt=opened), guard

    def _message(self, turn: Message, pattern: re.Pattern[str], guard: str) -> dict[str, Any]:
        found: dict[str, Any] = {"role": turn.role, "content": _broken(turn.content, pattern, guard)}
        if turn.reasoning and "reasoning_content" in self.tokenizer.chat_template:
            found["reasoning_content"] = _broken(turn.reasoning, pattern, guard)
        elif turn.reasoning:
            found["content"] = _broken(chatml.reply_text(turn), pattern, guard)
        if turn.tool_calls:
            calls = [
                {"name": call.name, "arguments": json.loads(_broken(call.arguments, pattern, guard))}
                for call in turn.tool_calls
            ]
            found["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return found

    def _pieces(self, text: str, guard: str, spans: Sequence[tuple[int, int, int]] = ()) -> list[Piece]:
        """What was rendered, cut at control tokens and at the borders of what has loss: (start, end, exchange)."""
        controls, pieces, at = _controls(self.tokenizer), [], 0
        borders = sorted({edge for start, end, _ in spans for edge in (start, end)})

        def turn(position: int) -> int:
            return next((turn for start, end, turn in spans if start <= position < end), 0)

        def plain(start: int, end: int) -> None:
            edges = [start, *(border for border in borders if start < border < end), end]
            for low, high in pairwise(edges):
                if part := text[low:high].replace(guard, ""):
                    pieces.append(Piece(part, False, turn(low)))

        for match in controls.found.finditer(text):
            name, (start, end) = match.group(), match.span()
            while name in controls.before and start > at and text[start - 1].isspace():
                start -= 1
            plain(at, start)
            pieces.append(Piece(name, True, turn(match.start())))
            at = end
            while name in controls.behind and at < len(text) and text[at].isspace():
                at += 1
        plain(at, len(text))
        return pieces


def _broken(text: str, pattern: re.Pattern[str], guard: str) -> str:
    """The text with the guard behind the first character of every name of a control token."""
    places = [match.start() + 1 for match in pattern.finditer(text)]
    if not places:
        return text
    return guard.join(text[start:end] for start, end in pairwise([0, *places, len(text)]))


def _tail(end: str) -> str:
    return _TAIL % {"end": "'" + end.replace("\\", "\\\\").replace("'", "\\'") + "'"}


def plain_template(tokenizer: Any) -> str:
    """The tokenizer's chat template as it was before `scoring_template` went around it, without the newline at its end
    that is never written."""
    template = str(tokenizer.chat_template or "")
    if template.startswith(_HEAD):
        template = template.removeprefix(_HEAD).rpartition("{% endset %}")[0]
    return template.removesuffix("\n")


def end_of_turn(tokenizer: Any) -> str:
    """The control token that the tokenizer's chat template writes behind a reply.

    Raises:
        TemplateError: it writes none, or fails on a question and its answer.
    """
    said = "aye"
    whole = render_template(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}])
    found = _controls(tokenizer).found.search(whole, max(whole.rfind(said), 0))
    if found is None:
        raise TemplateError(
            "the tokenizer's chat template writes no token behind a reply that could teach a model to stop"
        )
    return found.group()


def described(speaker: OwnTemplate) -> list[str]:
    """What the template does with conversations, in words.

    Raises:
        TemplateError: it cannot be trained at all; says why.
    """
    end, *others = speaker.stops
    speaker.render((ASKED, Message("assistant", "aye")))
    found = [f"a reply ends with {end}" + (f", and {', '.join(others)} stop one too" if others else "")]
    trials = {
        "system turns": (Message("system", "Be brief."), ASKED, Message("assistant", "aye")),
        "several turns": (ASKED, Message("assistant", "aye"), Message("user", "and?"), Message("assistant", "no")),
    }
    for what, turns in trials.items():
        try:
            speaker.render(turns)
        except (TemplateError, DataError) as error:
            found.append(f"{what} are refused ({error})")
    return found


def served_difference(speaker: OwnTemplate) -> str | None:
    """Where ids of prompts part from those of the whole rendered text, in words; None: they are the same."""
    for name, turns in CONVERSATIONS.items():
        try:
            text = render_template(speaker.tokenizer, [as_dict(turn) for turn in turns], add_generation_prompt=True)
        except TemplateError:  # `described` says which turns it refuses
            continue
        trained = speaker.encode([speaker.render(turns, add_generation_prompt=True)])[0]
        served = speaker.tokenizer(text, add_special_tokens=False)["input_ids"]
        if trained != served:
            texts = (speaker.tokenizer.convert_ids_to_tokens(ids) for ids in (trained, served))
            return f"of a conversation with {name} it serves {parted(*texts)}"
    return None
