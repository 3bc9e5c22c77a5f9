"""Tokenizers with the very chat templates and added tokens of Qwen's releases, and a vocabulary trained on a few words.

The templates of Qwen 2.5 and 3 are read from the installed trl, which ships them; that of 1.5 and 2 is written here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.models.tokenizer import train_tokenizer

WORDS = (
    "system user assistant tool call function name arguments json object weather 你好 héllo The rain. It is, one two"
)
CALLS = ["<tool_call>", "</tool_call>"]
QWEN3 = [*CALLS, "<tool_response>", "</tool_response>", "<think>", "</think>"]
QWEN2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _of_trl(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / name).read_text(encoding="utf-8")


def qwen(release: str) -> Any:
    """A tokenizer of release "1.5", "2", "2.5", "3", or "ours"."""
    tokenizer = train_tokenizer([WORDS] * 3, 400)
    tokenizer.add_tokens({"2.5": CALLS, "3": QWEN3}.get(release, []))  # merely "added", not special
    if release in ("1.5", "2"):
        tokenizer.chat_template = QWEN2_TEMPLATE
    elif release != "ours":
        tokenizer.chat_template = _of_trl({"2.5": "qwen2_5.jinja", "3": "qwen3.jinja"}[release])
    return tokenizer


def as_dicts(messages: Any) -> list[dict[str, Any]]:
    """Messages as `apply_chat_template` takes them."""
    import json

    found = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:
            one["reasoning_content"] = message.reasoning
        if message.tool_calls:
            calls = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in message.tool_calls]
            one["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        found.append(one)
    return found
