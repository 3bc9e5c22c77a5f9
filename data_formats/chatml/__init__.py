"""ChatML, rendered piece by piece so that text can never become a control token.

A turn is `<|im_start|>ROLE\\nCONTENT<|im_end|>\\n` (Qwen technical report, A.1.1). Control tokens are looked up by
name; everything else is encoded by a copy of the tokenizer that knows no added token at all, so `<|im_end|>` typed by
a user stays the characters it is. (Departure from tokenising the rendered string: no merge reaches across the border
between a role line and its content, as in Qwen's own finetune.py, and as when the model generates. A tokenizer's
`split_special_tokens=True` would not do: it still lets through tokens that are merely "added", such as Qwen2.5's
`<tool_call>`.)

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
    stop_ids,
)
from data_formats.chatml.pieces import END_OF_TEXT, IM_END, IM_START, Piece
from data_formats.chatml.rendering import MASKS, THINKING, Mask, Thinking, render, render_reply
from data_formats.chatml.template import CHAT_TEMPLATE
from data_formats.chatml.thinking import reply_text, with_reasoning

__all__ = [
    "CHAT_TEMPLATE",
    "END_OF_TEXT",
    "IM_END",
    "IM_START",
    "MASKS",
    "THINKING",
    "EncodedRow",
    "Mask",
    "Piece",
    "Thinking",
    "control_id",
    "default_system_turn",
    "encode",
    "encode_many",
    "encode_rows",
    "encode_texts",
    "render",
    "render_reply",
    "reply_text",
    "stop_ids",
    "with_reasoning",
    "with_system",
]
