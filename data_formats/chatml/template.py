"""The chat template that saved tokenizers carry: what `render` does, for whoever serves the model.

No default system turn is added; `WITH_BOS` is for tokenizers that put a BOS token before every text. Tools, calls and
answers stand in Qwen's format, thinking where a message has `reasoning_content`.
"""

from __future__ import annotations

from data_formats.chatml.tools import EXAMPLE, HOW, OFFER, XML_TAGS


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


_CALLS = """
{%- for call in message.tool_calls or [] -%}
{%- set call = call.function or call -%}
{%- if not loop.first or message.content -%}{{ '\\n' }}{%- endif -%}
{{ '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string else call.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor -%}
"""
_THINKING = """
{%- if message.role == 'assistant' and message.reasoning_content -%}
{{ '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
{%- set content = content.lstrip('\\n') -%}
{%- endif -%}
"""
CHAT_TEMPLATE = (
    """
{%- set turns = messages -%}
{%- if tools -%}
{{ '<|im_start|>system\\n' }}
{%- if messages and messages[0].role == 'system' -%}
{%- set turns = messages[1:] -%}
{%- if messages[0].content -%}{{ messages[0].content + '\\n\\n' }}{%- endif -%}
{%- endif -%}
{{ """
    + _quoted(OFFER)
    + """ }}
{%- for tool in tools -%}{{ '\\n' + (tool if tool is string else tool | tojson) }}{%- endfor -%}
{{ """
    + _quoted(f"{HOW}<tool_call></tool_call>{XML_TAGS}<tool_call>{EXAMPLE}</tool_call><|im_end|>\n")
    + """ }}
{%- endif -%}
{%- for message in turns -%}
{%- set content = message.content or '' -%}
{%- if message.role == 'tool' -%}
{{ '<|im_start|>user\\n' if loop.first or turns[loop.index0 - 1].role != 'tool' else '\\n' }}
{{- '<tool_response>\\n' + content + '\\n</tool_response>' }}
{%- if loop.last or turns[loop.index0 + 1].role != 'tool' -%}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- else -%}
{{ '<|im_start|>' + message.role + '\\n' }}"""
    + _THINKING.rstrip("\n")
    + """
{{ content }}"""
    + _CALLS.rstrip("\n")
    + """
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
).strip()
WITH_BOS = "{{ bos_token }}" + CHAT_TEMPLATE
_LAST = "{{ '<|im_end|>' }}{%- if not loop.last or add_generation_prompt -%}{{ '\\n' }}{%- endif -%}"


def ending_at_reply(template: str) -> str:
    """Our chat template for whoever scores: without the newline behind the last turn, at whose `<|im_end|>` a score is
    read. Another template stays as it is."""
    return template.replace("{{ '<|im_end|>\\n' }}", _LAST) if CHAT_TEMPLATE in template else template
