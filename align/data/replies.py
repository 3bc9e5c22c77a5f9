"""Files that hold prompts with replies, whatever else they are, as the replies to be scored.

A demonstration is its last reply, a comparison its chosen and then its rejected one, a row of scored or sampled replies
each of them. The further fields of a row go along, as those of a prompt do in PPO: rules and functions ask for them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_formats import Stream, format_names
from data_formats.chatml import reply_text
from data_formats.errors import DataError
from data_formats.records import Comparison, Demonstration, Message, Record, Scored

Turns = tuple[tuple[str, str], ...]  # role and text of each turn
KINDS: tuple[type[Record], ...] = (Scored, Comparison, Demonstration)


@dataclass(frozen=True, slots=True)
class PromptedReply:
    """A reply with what it answers; `columns` are further fields of its row, for rules and functions."""

    prompt: tuple[Message, ...]
    reply: str
    tools: tuple[str, ...] = ()
    columns: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A reply and where it stands: the file, the number of its row, and its own among the row's replies, from 0."""

    file: str
    row: int
    index: int
    reply: PromptedReply


@dataclass
class RepliesOfFile:
    """The replies of a file or hub dataset, read as they are asked for; iterating again reads again.

    Attributes:
        left_out: records without a reply that is text, by reason; complete when the replies are exhausted.

    Args:
        kind: what its rows are read as, one of `KINDS`.
        format: the format's name, or "auto".
        max_row_mb: as of `data_formats.read`, which has the errors too.
    """

    path: Path | str
    kind: type[Record]
    format: str = "auto"
    max_row_mb: float = 64
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._stream = Stream(self.path, self.kind, format=self.format, max_row_mb=self.max_row_mb)

    def __iter__(self) -> Iterator[Placed]:
        self.left_out.clear()
        row, index = 0, 0
        for line, columns, record in self._stream.placed():
            index = index if line == row else 0  # several records of one row are numbered through
            row = line
            told = columns | {"category": record.category, "source": record.source or str(self.path)}
            for reply in self._replies(record, told):
                yield Placed(str(self.path), line, index, reply)
                index += 1

    def _replies(self, record: Record, columns: dict[str, Any]) -> Iterator[PromptedReply]:
        if isinstance(record, Comparison):
            yield from sides(record, columns)
        elif isinstance(record, Scored):
            for reply in record.replies:
                yield PromptedReply(record.prompt, reply_text(reply.turn), record.tools, columns)
        elif (exchange := record.last_exchange()) is None:
            self.left_out["no reply"] += 1
        elif (turn := record.messages[len(exchange[0])]).tool_calls:
            self.left_out["reply is a tool call"] += 1
        else:
            yield PromptedReply(exchange[0], reply_text(turn), record.tools, columns)

    def describe(self) -> str:
        """What was read, in a sentence; of the last time that all was."""
        more = "".join(f"; {count} left out: {reason}" for reason, count in sorted(self.left_out.items()))
        return self._stream.report.describe() + more


def replies_by_prompt(source: RepliesOfFile, policy: str = "") -> dict[Turns, list[str]]:
    """The replies of a file by what they answer (role and text of each turn), in the file's order.

    Args:
        policy: of several whose replies a row holds (our `eval.jsonl`): the greedy one and then those sampled.

    Raises:
        DataError: rows that cannot be read; of several policies, and none of them is named, or another one.
    """
    found: dict[Turns, list[str]] = defaultdict(list)
    for one in source:
        columns = one.reply.columns or {}
        known = [name.removesuffix("_reply") for name in columns if name.endswith("_reply")]
        if (policy or len(known) > 1) and policy not in known:
            told = f"replies of {', '.join(known)}" if known else "replies of one model"
            advice = f"name one of them as FILE:{known[0]}" if known else "leave the name of a policy out"
            raise DataError(f"a row holds {told}: {advice}", path=one.file, line=one.row)
        turns = tuple((turn.role, turn.content) for turn in one.reply.prompt)
        if not policy:
            found[turns].append(one.reply.reply)
        elif one.index == 0:
            sampled = (columns.get("sampled") or {}).get(policy, [])
            found[turns] += [columns[f"{policy}_reply"], *(reply["reply"] for reply in sampled)]
    return dict(found)


def kind_named(format: str) -> type[Record]:
    """What rows of a format are read as: the replies of all kinds, before the comparisons that follow from them.

    Raises:
        DataError: no format of that name holds replies.
    """
    found = next((kind for kind in KINDS if format in format_names(kind)), None)
    if found is None:
        known = ", ".join(dict.fromkeys(name for kind in KINDS for name in format_names(kind)))
        raise DataError(f"no format of replies is called {format!r}; known are {known}", field="format")
    return found


def sides(pair: Comparison, columns: Mapping[str, Any] | None = None) -> tuple[PromptedReply, PromptedReply]:
    """The chosen and the rejected reply of a comparison."""
    chosen = PromptedReply((*pair.prompt, *pair.chosen_turns), reply_text(pair.chosen_reply), pair.tools, columns)
    rejected = PromptedReply((*pair.prompt, *pair.rejected_turns), reply_text(pair.rejected_reply), pair.tools, columns)
    return chosen, rejected
