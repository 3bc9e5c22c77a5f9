"""How a model speaks: which tokens frame a conversation, which end a reply or a document, and which text may be none.

A tokenizer carries its format: `chat_format(tokenizer)` is the one place that is asked, by whoever renders, masks,
samples, scores, merges, exports or saves. There are three.

    chatml  `<|im_start|>role … <|im_end|>` (`data_formats.chatml`); of every tokenizer that says nothing else
    own     the tokenizer's chat template (`data_formats.chat_format.own`)
    none    the raw prompt and the completion behind it, with an end token (TL;DR, "Learning to summarize")

What is not ChatML stands in `tokenizer_config.json`, so that every folder says by itself how its model speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from align.runtime.errors import AlignError
from data_formats.chat_format.base import ChatFormat
from data_formats.chat_format.own import OwnTemplate, described, end_of_turn, plain_template, served_difference
from data_formats.chat_format.raw import RAW_BOS, RAW_TEMPLATE, RawFormat

FORMATS = {"chatml": ChatFormat, "own": OwnTemplate, "none": RawFormat}
KEY = "chat_format"  # in tokenizer_config.json

__all__ = [
    "FORMATS",
    "KEY",
    "RAW_BOS",
    "RAW_TEMPLATE",
    "ChatFormat",
    "OwnTemplate",
    "RawFormat",
    "chat_format",
    "described",
    "end_of_turn",
    "plain_template",
    "remember",
    "remembered",
    "served_difference",
]


def chat_format(tokenizer: Any) -> ChatFormat:
    """How the model of this tokenizer speaks.

    Raises:
        AlignError: its `tokenizer_config.json` names a format that there is not.
    """
    said = remembered(tokenizer)
    name = said.get("template", "chatml")
    if name not in FORMATS:
        raise AlignError(f"tokenizer_config.json: {KEY}.template is {name!r}, known are {', '.join(FORMATS)}")
    return FORMATS[name](tokenizer, said["stops"]) if "stops" in said else FORMATS[name](tokenizer)


def remember(tokenizer: Any, template: str, stops: Sequence[str] = (), added: Sequence[int] = ()) -> None:
    """Have the tokenizer carry its format, into its folder as well.

    Args:
        added: ids of tokens that it was given and whose embeddings are new.
    """
    said = {"template": template, "stops": list(stops), "added": list(added)}
    tokenizer.init_kwargs[KEY] = {key: value for key, value in said.items() if value}


def remembered(tokenizer: Any) -> dict[str, Any]:
    """What `remember` noted; empty for plain ChatML."""
    return (getattr(tokenizer, "init_kwargs", None) or {}).get(KEY) or {}
