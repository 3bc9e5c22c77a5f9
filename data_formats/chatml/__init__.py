"""ChatML, rendered piece by piece so that text can never become a control token.

A turn is `<|im_start|>ROLE\\nCONTENT<|im_end|>\\n` (Qwen technical report, A.1.1). Control tokens are looked up by
name; everything else is encoded by a copy of the tokenizer that knows no added token at all, so `<|im_end|>` typed by
a user stays the characters it is. (Departure from tokenising the rendered string: no merge reaches across the border
between a role line and its content, as in Qwen's own finetune.py, and as when the model generates. A tokenizer's
`split_special_tokens=True` would not do: it still lets through tokens that are merely "added", such as Qwen2.5's
`<tool_call>`.)

A conversation begins with what the tokenizer's chat template writes first (a BOS token, or nothing), and text after a
control token with the space that tokenizers after Llama's put there; `template_difference` says where the ids part from
what the template serves.

Tokenizers are duck-typed: anything with `backend_tokenizer` (tokenizers.Tokenizer) and `get_added_vocab`, i.e. every
fast Hugging Face tokenizer.
"""

from data_formats.chatml.defaults import default_system_turn, with_system
from data_formats.chatml.encoding import (
    EncodedRow,
    control_id,
    encode,
    encode_many,
    encode_rows,
    encode_texts,
)
from data_formats.chatml.pieces import END_OF_TEXT, IM_END, IM_START, Piece
from data_formats.chatml.probe import template_difference
from data_formats.chatml.rendering import MASKS, REPLY_OPENING, THINKING, Mask, Thinking, render, render_reply
from data_formats.chatml.served import TemplateError, opening_token, render_template
from data_formats.chatml.template import CHAT_TEMPLATE, WITH_BOS, ending_at_reply
from data_formats.chatml.thinking import reply_text, with_reasoning

__all__ = [
    "CHAT_TEMPLATE",
    "END_OF_TEXT",
    "IM_END",
    "IM_START",
    "MASKS",
    "REPLY_OPENING",
    "THINKING",
    "WITH_BOS",
    "EncodedRow",
    "Mask",
    "Piece",
    "TemplateError",
    "Thinking",
    "control_id",
    "default_system_turn",
    "encode",
    "encode_many",
    "encode_rows",
    "encode_texts",
    "ending_at_reply",
    "opening_token",
    "render",
    "render_reply",
    "render_template",
    "reply_text",
    "template_difference",
    "with_reasoning",
    "with_system",
]
