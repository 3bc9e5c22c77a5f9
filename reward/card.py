"""What the model card of a reward model says that is one of transformers' classifiers: what to feed it, and what to
make of its scores. An adapter of one says the same with PEFT's class."""

from __future__ import annotations

from textwrap import indent
from typing import Any

from align.runtime.card import PATH
from data_formats.chat_format import chat_format
from data_formats.chatml import render_template

TRAINED = ("Recipe", "Data", "Figures")  # sections of a stage's card that hold for what is made from its model
TAGS = ["rlhf", "reward-model"]
ABOUT = """\
A reward model: one score for a conversation that ends with an assistant's reply; higher is better."""
FEED = """\
A conversation in the model's own format that **ends at `{end_token}`**, without the newline, or whatever else, that
chat templates put behind the last turn. The score is read at the last token that is not padding (`{pad_token}`,
id {pad_id}); with the newline it would be read at a token the model was never trained to score at.

{example}

The chat template in this folder gives just that. Text from users may spell out control tokens such as `{end_token}`:
break them up before the template is applied, or a reply can forge turns. No system turn is added; give one if the
model's training data had one."""
USE = """\
```python
import torch
from transformers import {classes}

{path}  # this folder, or its id on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
{load}
messages = [
    {{"role": "user", "content": "How far is the moon?"}},
    {{"role": "assistant", "content": "About 384,000 km."}},
]
text = tokenizer.apply_chat_template(messages, tokenize=False)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
with torch.no_grad():
    raw = model(**inputs).logits[0, 0].item()
score = (raw - {shift!r}) / {scale!r}  # calibrated: see below
```"""
WHOLE = (
    "AutoModelForSequenceClassification, AutoTokenizer",
    "model = AutoModelForSequenceClassification.from_pretrained(path).eval()",
)
ADAPTER = (
    "AutoTokenizer\nfrom peft import AutoPeftModelForSequenceClassification",
    "model = AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1).eval()\n"
    "model.config.pad_token_id = {pad_id}  # the base's config may name another, or none",
)
SCORES = """\
`raw`, the logit, is what the class gives. The calibrated score is `(raw - reward_shift) / reward_scale` with

| | |
|---|---|
| `reward_shift` | {shift!r} |
| `reward_scale` | {scale!r} |

{where}Differences between two replies to one prompt are what was trained: the sigmoid of the raw
difference is the probability that the first one is preferred. Leave any activation off.{rounding}"""
ROUNDING = """

The weights are stored in {dtype}, and the class computes its head in that too; the training code keeps its head in
float32, so scores differ from it in the third digit or so."""
VLLM = """\
```python
from vllm import LLM, PoolingParams

llm = LLM(path, runner="pooling", convert="classify")
out = llm.classify([text], pooling_params=PoolingParams(use_activation=False))
raw = out[0].outputs.probs[0]
```"""
EXAMPLE = (
    {"role": "user", "content": "How far is the moon?"},
    {"role": "assistant", "content": "About 384,000 km."},
)


def classifier_sections(
    tokenizer: Any, *, shift: float, scale: float, pad_id: int | None, dtype: str = "float32", whole: bool = True
) -> dict[str, str]:
    """Sections of the card of a classifier, by heading.

    Args:
        tokenizer: saved with it; its chat template writes the example.
        shift, scale: of the calibrated score, in the config of a whole model.
        pad_id: of the token that the class tells padding by.
        dtype: of the weights.
        whole: not an adapter.
    """
    classes, load = WHOLE if whole else ADAPTER
    speaker = chat_format(tokenizer)
    if pad_id is None and speaker.padding is not None:  # an adapter's config has none
        pad_id = tokenizer.convert_tokens_to_ids(speaker.padding)
    pad_token = None if pad_id is None else tokenizer.convert_ids_to_tokens(pad_id)
    example = indent(render_template(tokenizer, EXAMPLE), "    ")
    return {
        "What to feed it": FEED.format(end_token=speaker.stops[0], pad_token=pad_token, pad_id=pad_id, example=example),
        "Use": USE.format(path=PATH, classes=classes, load=load.format(pad_id=pad_id), shift=shift, scale=scale),
        "Scores": SCORES.format(
            shift=shift,
            scale=scale,
            where="both in `config.json`. " if whole else "",
            rounding="" if dtype == "float32" else ROUNDING.format(dtype=dtype),
        ),
        "Serving with vLLM": VLLM if whole else "",
    }
