"""What every format of a conversation answers, and ChatML's answers (`data_formats.chatml`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from data_formats import chatml
from data_formats.chatml import END_OF_TEXT, IM_END, EncodedRow, Piece
from data_formats.errors import DataError
from data_formats.records import Message

REPLY_MASKS = ("assistant_only", "last_turn_only")  # those that every format knows


class ChatFormat:
    """ChatML, and what the other formats share with it.

    Args:
        tokenizer: a fast tokenizer of transformers.
        stops: the tokens that stop a reply; the first one finishes it, the others only stop it.
    """

    name: ClassVar[str] = "chatml"

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (IM_END, END_OF_TEXT)):
        self.tokenizer, self.stops = tokenizer, tuple(stops)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of `stops`.

        Raises:
            DataError: the tokenizer does not know one of them.
        """
        return tuple(chatml.control_id(self.tokenizer, token) for token in self.stops)

    @property
    def end_id(self) -> int:
        """The token that finishes a reply."""
        return chatml.control_id(self.tokenizer, self.stops[0])

    @property
    def document_end_id(self) -> int:
        """The token that ends a document: one that stops a reply without finishing it, where there is such a one."""
        others = [*self.stops[1:], *([END_OF_TEXT] if END_OF_TEXT in self.tokenizer.get_added_vocab() else [])]
        return chatml.control_id(self.tokenizer, others[0] if others else self.stops[0])

    @property
    def padding(self) -> str | None:
        """A token for padding that can never be taken for the end of a reply, as classifiers of transformers need it,
        which tell padding by its id; None where the tokenizer has none."""
        pad, (end, *others) = self.tokenizer.pad_token, self.stops
        special = (str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return next((token for token in [pad, *others, *special] if token not in (None, end)), None)

    @property
    def scoring_template(self) -> str:
        """The chat template of whoever scores: what it writes ends with the reply's end token."""
        return chatml.ending_at_reply(chatml.WITH_BOS if chatml.opening_token(self.tokenizer) else chatml.CHAT_TEMPLATE)

    def render(
        self,
        messages: Iterable[Message],
        *,
        tools: Sequence[str] = (),
        mask: str = "assistant_only",
        thinking: str = "keep",
        add_generation_prompt: bool = False,
    ) -> list[Piece]:
        """The pieces of a conversation; arguments as of `data_formats.chatml.render`."""
        return chatml.render(
            messages, tools=tools, mask=mask, thinking=thinking, add_generation_prompt=add_generation_prompt
        )

    def render_reply(self, reply: Message) -> list[Piece]:
        """The pieces of a reply alone, its end token included: what follows a prompt."""
        return chatml.render_reply(reply)

    def default_system_turn(self) -> Message | None:
        """The system turn that the tokenizer's template would add, for `chatml.with_system`; None where the format has
        none or writes it itself."""
        return chatml.default_system_turn(self.tokenizer)

    def encode_rows(self, conversations: Iterable[Sequence[Piece]], no_loss: int = -100) -> Iterator[EncodedRow]:
        """Pieces as ids, turns and labels."""
        return chatml.encode_rows(self.tokenizer, conversations, no_loss, first=self._first())

    def encode(self, conversations: Iterable[Sequence[Piece]]) -> list[list[int]]:
        """Pieces as ids."""
        return [row.ids for row in self.encode_rows(conversations)]

    def encode_replies(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of replies, end token included: what follows the ids of a prompt.

        A `<think>` block at the beginning of a reply counts as thinking, as it does in demonstrations.
        """
        replies = chatml.with_reasoning(Message("assistant", text) for text in texts)
        thought = [at for at, reply in enumerate(replies) if reply != Message("assistant", texts[at])]
        rows = [[*ids, self.end_id] for ids in chatml.encode_texts(self.tokenizer, texts, continues=True)]
        opening = chatml.REPLY_OPENING
        before = len(self.encode([opening])[0])
        whole = ([*opening, *self.render_reply(replies[at])] for at in thought)
        for at, ids in zip(thought, self.encode(whole), strict=True):
            rows[at] = ids[before:]
        return rows

    def speaks_like(self, other: ChatFormat) -> bool:
        """Whether the same conversation has the same ids in both, given the same vocabulary."""
        return (self.name, self.stops[:1]) == (other.name, other.stops[:1])

    def _first(self) -> str | None:
        return None


def require_reply_mask(mask: str, name: str) -> None:
    """Raises DataError for a mask that looks at what stands between the turns of ChatML."""
    if mask not in REPLY_MASKS:
        raise DataError(f"mask {mask} is ChatML's alone; with template {name} use {' or '.join(REPLY_MASKS)}")
