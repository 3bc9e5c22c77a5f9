"""One prompt, as it is, and the completion behind it, closed by a named end token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data_formats import chatml
from data_formats.chat_format.base import ChatFormat, require_reply_mask
from data_formats.chatml import Piece
from data_formats.errors import DataError
from data_formats.records import Message

RAW_BOS = "{{ bos_token }}"
RAW_TEMPLATE = """
{%- if messages | map(attribute='role') | join(' ') not in ['user', 'user assistant'] -%}
{{ raise_exception('This model takes one prompt and writes its completion; it knows no turns.') }}
{%- endif -%}
{{ messages[0].content }}
{%- if messages | length == 2 -%}{{ messages[1].content + eos_token }}{%- endif -%}
""".strip()


class RawFormat(ChatFormat):
    """One prompt, as it is, and the completion behind it; `stops` are the named end token alone."""

    name = "none"

    @property
    def scoring_template(self) -> str:
        """The template that it has anyway."""
        return self.tokenizer.chat_template

    def render(
        self,
        messages: Iterable[Message],
        *,
        tools: Sequence[str] = (),
        mask: str = "assistant_only",
        thinking: str = "keep",
        add_generation_prompt: bool = False,
    ) -> list[Piece]:
        """As of the base class.

        Raises:
            DataError: not one prompt (and one completion).
        """
        prompt, *replies = messages
        roles = (prompt.role, *(reply.role for reply in replies))
        if tools or roles not in {("user",), ("user", "assistant")}:
            what = "tools" if tools else f"a conversation of {', '.join(roles)}"
            raise DataError(
                f"a model without turns (model.tokenizer.template: none) takes one prompt and one completion, not "
                f"{what}; leave such rows out, or choose another template"
            )
        require_reply_mask(mask, self.name)
        pieces = [Piece(prompt.content)] if prompt.content else []
        return pieces + [piece for reply in replies for piece in self._completion(reply, int(reply.loss))]

    def render_reply(self, reply: Message) -> list[Piece]:
        """As of the base class."""
        return self._completion(reply, 0)

    def default_system_turn(self) -> Message | None:
        """None."""
        return None

    def encode_replies(self, texts: Sequence[str]) -> list[list[int]]:
        """As of the base class; thinking is text like any other."""
        return [[*ids, self.end_id] for ids in chatml.encode_texts(self.tokenizer, texts, continues=True)]

    def _completion(self, reply: Message, turn: int) -> list[Piece]:
        text = chatml.reply_text(reply)
        return [*([Piece(text, False, turn)] if text else []), Piece(self.stops[0], True, turn)]

    def _first(self) -> str | None:
        return self.tokenizer.bos_token if self.tokenizer.chat_template.startswith(RAW_BOS) else ""
