"""What a row says around its turns: `system` before them, `history` before the question, `context` beside it.

Every format takes a row's prompt from here, so that one file has the same context whatever it is read as.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_formats.errors import DataError
from data_formats.fields import NOTHING, present
from data_formats.formats import Dropped, Notes, as_text, shown
from data_formats.records import Message
from data_formats.tools import parsed, turn_list
from data_formats.turns import Turns, as_prompt, prompt_turns, read_turns

SYSTEM_FIELDS = ("system", "system_prompt", "system_message", "system_instruction")
CONTEXT_FIELDS = ("context", "contexts", "passage", "passages", "document", "documents")
_BODIES = ("text", "content", "contents", "passage")  # of a document {title, text}


def with_system(row: dict[str, Any], turns: Turns, notes: Notes) -> Turns:
    """The turns after the row's system turn; one that says what their own says stands once.

    Two that differ become one where the turns are repaired, which counts it.
    """
    names = present(row, SYSTEM_FIELDS)
    if not names:
        return turns
    own = {turn.content.strip() for turn in turns if turn.role == "system"}
    said: dict[str, Message] = {}
    for name in names:
        text = as_text(row[name], name, notes) if row.get(name) is not None else ""
        if text.strip() and text.strip() not in own:
            said.setdefault(text.strip(), Message("system", text))
    return (*said.values(), *turns)


def _history(row: dict[str, Any], notes: Notes) -> Turns:
    """`history`: [[user, reply], ...] (LLaMA-Factory's Alpaca rows, ChatGLM) or turns, or the JSON text of these."""
    raw = row.get("history")
    if raw in NOTHING:
        return ()
    if (turns := turn_list(raw)) is not None:
        return read_turns(turns, "history", notes)
    if isinstance(raw, str):
        raw = parsed(raw, "history")
    if not isinstance(raw, list):
        raise DataError(f"expected a list of [user, reply] or of turns, found {shown(raw)}", field="history")
    found: list[Message] = []
    for at, pair in enumerate(raw):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise DataError(f"expected [user, reply], found {shown(pair)}", field=f"history[{at}]")
        found += [Message("user", as_text(pair[0], f"history[{at}][0]", notes))]
        found += [Message("assistant", as_text(pair[1], f"history[{at}][1]", notes))]
    return tuple(found)


def _passage(value: Any, field: str, notes: Notes) -> str:
    """A document: a text, [title, sentence, ...] or {title, text}; the title on a line of its own."""
    if isinstance(value, list) and value:
        title, *sentences = (as_text(part, field, notes) for part in value)
        return "\n".join((title, " ".join(sentences))) if sentences else title
    if isinstance(value, dict):
        body = next((name for name in _BODIES if isinstance(value.get(name), str)), None)
        if body is not None and value.keys() - {"title", "id", "url", "score"} == {body}:
            return "\n".join(as_text(value[name], field, notes) for name in ("title", body) if value.get(name))
    return as_text(value, field, notes)


def _passages(row: dict[str, Any], notes: Notes) -> list[str]:
    """The texts that a question is to be answered from."""
    found = []
    for name in present(row, CONTEXT_FIELDS):
        raw = row.get(name)
        if raw in NOTHING:
            continue
        found += [_passage(one, name, notes) for one in (raw if isinstance(raw, list) else [raw])]
    return [text for text in found if text.strip()]


def asked(row: dict[str, Any], field: str, notes: Notes, text: str | None = None) -> Turns:
    """The prompt of a row: its system turn, its history, and the string or turns under `field` with the row's context.

    Passages stand below the question, a blank line between.

    Args:
        text: what is asked, where it is not simply what stands under `field`.

    Raises:
        Dropped: see `turns.prompt_turns`.
        DataError: a field is not what it should be.
    """
    alone = turns = as_prompt(row[field] if text is None else text, field, notes)
    before, passages = _history(row, notes), _passages(row, notes)
    if passages:
        last = turns[-1]
        turns = (*turns[:-1], replace(last, content="\n\n".join((last.content, *passages))))
    if before:
        own = 1 if turns[0].role == "system" else 0
        turns = (*turns[:own], *before, *turns[own:])
    whole = with_system(row, turns, notes)
    return whole if whole is alone else prompt_turns(whole, notes)


def judged(row: dict[str, Any], field: str, notes: Notes) -> tuple[Turns, Message]:
    """A conversation on whose last reply a label or score hangs -> its prompt and that reply; nothing is cut.

    Raises:
        Dropped: it does not end with a reply that says something, or see `turns.prompt_turns`.
    """
    turns = with_system(row, read_turns(row[field], field, notes), notes)
    if not turns or turns[-1].role != "assistant":
        raise Dropped("ends without reply")
    if not turns[-1].content.strip() and not turns[-1].tool_calls:
        raise Dropped("empty reply")
    return prompt_turns(turns[:-1], notes), turns[-1]
