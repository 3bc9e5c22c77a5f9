"""Formats of OASST: trees of messages, whole (`prompt` with `replies`) or a message a row (`parent_id`).

Every reply that people ranked against others is a preference: each turn of a user with several ranked answers gives one
`Scored`, its prompt the path from the root. As a demonstration a tree is one conversation, the best-ranked message at
every step; what is off this path is counted. Messages that were deleted or failed review are left out with all below
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from data_formats.demonstrations import demonstration_of
from data_formats.errors import DataError
from data_formats.fields import Fields, objects
from data_formats.formats import OFF_THE_PATH, Dropped, Format, Notes, optional_number, shown, text_field
from data_formats.neighbours import Neighbours, by
from data_formats.prompts import prompt_of
from data_formats.records import Demonstration, Message, Prompt, Reply, Scored
from data_formats.scored import compared, scored_of
from data_formats.turns import Turns, role_of

_SAYS_NOTHING = frozenset(
    {"review_count", "review_result", "deleted", "synthetic", "detoxify", "labels", "emojis", "tree_state", "rank"}
    | {"emoji", "events", "replies", "prompt", "ready_for_export", "role", "text"}
)
_DEEPEST = 200  # messages in a row


@dataclass(slots=True)
class _Node:
    """A message with the answers to it; `rank`: 0 is the best of its siblings."""

    message: Message
    rank: float | None
    left_out: bool
    answers: list[_Node] = field(default_factory=list)

    def size(self) -> int:
        return 1 + sum(answer.size() for answer in self.answers)


def _node(raw: dict[str, Any], at: str, notes: Notes) -> _Node:
    message = Message(role_of(raw["role"], f"{at}.role" if at else "role"), text_field(raw, "text", notes))
    bad = raw.get("deleted") is True or raw.get("review_result") is False
    node = _Node(message, optional_number(raw, "rank"), bad)
    for name in _SAYS_NOTHING:
        raw.get(name)
    return node


def _nested(raw: Fields, notes: Notes, depth: int = 1) -> _Node:
    """A message with `replies`, which are messages with replies."""
    if depth > _DEEPEST:
        raise DataError(f"more than {_DEEPEST} messages in a row", field=raw.at)
    if "role" not in raw:
        raise DataError(f"expected a message {{text, role, replies}}, found {shown(dict(raw))}", field=raw.at)
    node = _node(raw, raw.at, notes)
    if raw.get("replies"):
        node.answers = [_nested(reply, notes, depth + 1) for reply in objects(raw, "replies", notes)]
    return node


def _whole(row: dict[str, Any], notes: Notes) -> _Node:
    row.get("tree_state")
    root = Fields(row["prompt"], "prompt")
    tree = _nested(root, notes)
    root.pass_over(notes)
    return _pruned(tree)


def _joined(rows: Neighbours, notes: Notes) -> _Node:
    """The tree of the messages of one `message_tree_id`.

    Raises:
        Dropped: its first message is missing (the file's rows are not in their order, or filtered).
    """
    nodes = rows.each(lambda row: _node(row, "", notes))
    by_id = {
        row["message_id"]: node for row, node in zip(rows, nodes, strict=True) if isinstance(row["message_id"], str)
    }
    roots = []
    for row, node in zip(rows, nodes, strict=True):
        parent = row["parent_id"]
        if parent is None or parent == "":
            roots.append(node)
        elif isinstance(parent, str) and parent in by_id and by_id[parent] is not node:
            by_id[parent].answers.append(node)
        else:
            notes[OFF_THE_PATH] += 1
    if len(roots) != 1:
        raise Dropped("no tree with one first message")
    return _pruned(roots[0])


def _pruned(root: _Node) -> _Node:
    """The tree without what was deleted or failed review.

    Raises:
        Dropped: nothing is left.
    """
    if root.left_out:
        raise Dropped("deleted or failed review")
    stack = [root]
    while stack:
        node = stack.pop()
        node.answers = [answer for answer in node.answers if not answer.left_out]
        stack += node.answers
    return root


def _best(answers: list[_Node]) -> _Node:
    """The best-ranked one; where none is ranked, the first."""
    return min(answers, key=lambda node: float("inf") if node.rank is None else node.rank)


def _threads(node: _Node, before: Turns = ()) -> Iterator[tuple[Turns, list[_Node]]]:
    """Every turn of a user with what leads to it, and its answers."""
    path = (*before, node.message)
    if node.message.role == "user" and node.answers:
        yield path, node.answers
    for answer in node.answers:
        yield from _threads(answer, path)


def _demonstration(row: dict[str, Any], root: _Node, notes: Notes) -> Demonstration:
    path, node = [root.message], root
    while node.answers:
        node = _best(node.answers)
        path.append(node.message)
    notes[OFF_THE_PATH] += root.size() - len(path)
    return demonstration_of(row, tuple(path), notes)


def _compared(row: dict[str, Any], root: _Node, notes: Notes) -> tuple[Scored, ...]:
    made = []
    for prompt, answers in _threads(root):
        ranked = [Reply(node.message.content, 0.0 - node.rank) for node in answers if node.rank is not None]
        if len(ranked) > 1:
            made.append(scored_of(row, prompt, ranked, notes))
    if not made:
        raise Dropped("no ranked replies")
    return tuple(made)


def _prompt(row: dict[str, Any], root: _Node, notes: Notes) -> Prompt:
    return prompt_of(row, (root.message,), notes)


_MADE = ((Demonstration, _demonstration), (Scored, _compared), (Prompt, _prompt))


def parse_tree(row: dict[str, Any], notes: Notes, make: Callable[..., Any]) -> Any:
    """`prompt`: {text, role, rank, replies: [the same]} and `message_tree_id` (OASST's trees)."""
    return make(row, _whole(row, notes), notes)


def parse_messages(rows: Neighbours, notes: Notes, make: Callable[..., Any]) -> Any:
    """`message_id`, `parent_id`, `text`, `role`, `rank`: a message a row, those of a tree together (OASST)."""
    return make(rows[0], _joined(rows, notes), notes)


def _is_tree(row: dict[str, Any]) -> bool:
    return isinstance(row["prompt"], dict) and "text" in row["prompt"]


_TREE = frozenset({"message_tree_id", "prompt"})
_MESSAGE = frozenset({"message_tree_id", "message_id", "parent_id", "text", "role"})
_FORMATS = tuple(
    known
    for kind, make in _MADE
    for known in (
        Format("oasst_tree", kind, _TREE, partial(parse_tree, make=make), _is_tree),
        Format("oasst_messages", kind, _MESSAGE, partial(parse_messages, make=make), group=by("message_tree_id")),
    )
)
FORMATS = (*_FORMATS, *(compared(known) for known in _FORMATS if known.kind is Scored))
