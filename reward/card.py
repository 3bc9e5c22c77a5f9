"""The model card of an exported reward model: what to feed it, and what to make of its scores."""

from __future__ import annotations

from textwrap import indent
from typing import Any

from data_formats.chatml import render_template

CARD = """\
---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, rlhf]
---

# {name}

A reward model: one score for a conversation that ends with an assistant's reply; higher is better. It is a plain
`{architecture}` with one label, made by `align export-reward`.

## What to feed it

A conversation in the model's own format that **ends at `{end_token}`**, without the newline, or whatever else, that
chat templates put behind the last turn. The score is read at the last token that is not padding (`{pad_token}`,
id {pad_id}); with the newline it would be read at a token the model was never trained to score at.

{example}

The chat template in this folder gives just that. Text from users may spell out control tokens such as `{end_token}`:
break them up before the template is applied, or a reply can forge turns. No system turn is added; give one if the
model's training data had one.

```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}").eval()
messages = [
    {{"role": "user", "content": "How far is the moon?"}},
    {{"role": "assistant", "content": "About 384,000 km."}},
]
text = tokenizer.apply_chat_template(messages, tokenize=False)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    raw = model(**inputs).logits[0, 0].item()
score = (raw - model.config.reward_shift) / model.config.reward_scale
```

## Scores

`raw`, the logit, is what the class gives. The calibrated score is `(raw - reward_shift) / reward_scale` with

| | |
|---|---|
| `reward_shift` | {shift!r} |
| `reward_scale` | {scale!r} |

both in `config.json`. Differences between two replies to one prompt are what was trained: the sigmoid of the raw
difference is the probability that the first one is preferred. Leave any activation off.{rounding}

## Serving with vLLM

```python
from vllm import LLM, PoolingParams

llm = LLM("{name}", runner="pooling", convert="classify")
out = llm.classify([text], pooling_params=PoolingParams(use_activation=False))
raw = out[0].outputs.probs[0]
```
"""
ROUNDING = """

The weights are stored in {dtype}, the head's among them; the training code keeps its head in float32, so scores differ
from it in the third digit or so."""


EXAMPLE = (
    {"role": "user", "content": "How far is the moon?"},
    {"role": "assistant", "content": "About 384,000 km."},
)


def model_card(config: Any, name: str, tokenizer: Any, end_token: str) -> str:
    """README.md of an exported classifier.

    Args:
        config: its transformers config, with `reward_shift` and `reward_scale`.
        name: of the folder, which stands in the examples.
        tokenizer: exported with it; its chat template writes the example.
        end_token: at which scores are read.
    """
    example = render_template(tokenizer, EXAMPLE)
    dtype = str(config.dtype).removeprefix("torch.")
    return CARD.format(
        name=name,
        architecture=(config.architectures or ["sequence classifier"])[0],
        pad_token=tokenizer.pad_token,
        end_token=end_token,
        example=indent(example, "    "),
        pad_id=config.pad_token_id,
        shift=config.reward_shift,
        scale=config.reward_scale,
        rounding="" if dtype == "float32" else ROUNDING.format(dtype=dtype),
    )
