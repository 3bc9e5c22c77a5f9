"""A foreign reward model: any `*ForSequenceClassification` with one label, with its own tokenizer and template.

The text is re-encoded for it:
- with a chat template, prompt and reply go through it as a conversation (`apply_chat_template`, no generation prompt);
- without one, as plain text: the pair (prompt, reply) where the tokenizer puts separators between pairs (BERT, DeBERTa:
  `[CLS] prompt [SEP] reply [SEP]`), else prompt and reply joined by a newline. The prompt is its one turn's content, or
  "role: content" lines where it has several turns.

The text of its control tokens inside a turn is broken up by a space, so that a reply cannot forge a turn.
Too long: the oldest turns go, then the prompt's head is cut; the reply stays whole while it fits alone. The head
reads where the foreign class reads (for decoders: at the last id that is not its pad id, which it pads with; a config
without pad id is scored row by row).

A folder with a peft adapter (`adapter_config.json`, as trl's RewardTrainer leaves it) is loaded on its base model and
merged into it; the head must have been saved with the adapter (`modules_to_save`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from align.runtime.errors import MissingFileError, reason_of
from align.runtime.padding import pad_right
from data_formats.chatml import TemplateError, render_template
from data_formats.records import Message
from reward.adapter import peft_config, put_on
from reward.errors import ModelFileError
from reward.folder import check_safetensors, read_json
from reward.forward import forward_errors, position_room
from reward.loading import check_vocabulary, hub_file, load_config, load_pretrained, saved_tokenizer
from reward.protocol import RewardError, Sample
from reward.scoring import batches_by_length, checked, require_room

logger = logging.getLogger(__name__)
HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class ClassifierReward:
    """Scores with a foreign sequence-classification model.

    Attributes:
        reads_ids: False, the policy's token ids are never looked at.
        batch_tokens: tokens held at once, for whoever bounds them; a sample of more is refused.

    Args:
        path: folder or hub id.
        batch_size: sequences held at once.
        max_length: tokens; default: the smaller of what tokenizer and model allow.
        name: for logs and errors.
        device: where to put the model, default: where it is loaded.
        load_kwargs: `dtype`, `revision`, `trust_remote_code`, `attn_implementation`, ... as of `from_pretrained`.

    Raises:
        MissingFileError, ModelFileError: nothing there, torn, not a one-label classifier.
    """

    reads_ids: ClassVar[bool] = False

    def __init__(
        self,
        path: str | Path,
        batch_size: int = 64,
        *,
        max_length: int | None = None,
        name: str = "reward_model",
        device: str | torch.device | None = None,
        **load_kwargs: Any,
    ):
        from transformers import AutoModelForSequenceClassification

        adapter = hub_file(path, ADAPTER, **load_kwargs)
        if adapter is not None and hub_file(path, "config.json", **load_kwargs) is None:
            model = _with_adapter(path, adapter, **load_kwargs)
        else:
            model = load_pretrained(AutoModelForSequenceClassification, path, exact=(), **load_kwargs)
        if model.config.num_labels != 1:
            raise ModelFileError(f"{path} has {model.config.num_labels} labels; a reward model has one (num_labels 1)")
        self.model = model.requires_grad_(False).eval()
        if device is not None:
            self.model.to(device)
        self.tokenizer = saved_tokenizer(path, **load_kwargs)
        check_vocabulary(model, self.tokenizer, path)
        self.name = name
        self.batch_tokens: int | None = None
        config = model.config.get_text_config()
        self.pad_id: int | None = getattr(config, "pad_token_id", None)
        self.batch_size = 1 if self.pad_id is None else batch_size
        self._room = position_room(self.model)
        self.max_length = min(
            max_length or math.inf,
            self.tokenizer.model_max_length,
            getattr(config, "max_position_embeddings", None) or math.inf,
            self._room or math.inf,
        )
        self._controls = sorted(
            (token for token in self.tokenizer.all_special_tokens if len(token) > 1), key=len, reverse=True
        )

    def encode(self, sample: Sample) -> list[int]:
        """The ids a sample is scored on."""
        turns = [Message(turn.role, self._defuse(turn.content)) for turn in sample.prompt]
        reply = Message("assistant", self._defuse(sample.completion))
        encode = self._templated if self.tokenizer.chat_template else self._plain
        ids = encode(turns, reply)
        if len(ids) <= self.max_length:
            return ids
        logger.info("reward %r: a sample of %d tokens is cut to %d", self.name, len(ids), self.max_length)
        while len(ids) > self.max_length and len(turns) > 1:
            del turns[1 if turns[0].role == "system" and len(turns) > 2 else 0]
            ids = encode(turns, reply)
        return ids[-int(self.max_length) :]

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score (the model's single logit) a sample.

        Raises:
            RewardError: the model failed, or a score that is not finite.
        """
        rows = [self.encode(sample) for sample in samples]
        require_room(rows, self.batch_tokens, self.name)
        device = next(self.model.parameters()).device
        scores = [math.nan] * len(rows)
        for indices in batches_by_length([len(row) for row in rows], self.batch_size, self.batch_tokens):
            asked = [rows[index] for index in indices]
            ids_BT, mask_BT = (part.to(device) for part in pad_right(asked, self.pad_id or 0))
            texts = [samples[index].completion for index in indices]
            length = lambda at, texts=texts: self._length(texts[at])  # noqa: E731
            with forward_errors(self.name, self.model, asked, length, self._room):
                logits_B1 = self.model(input_ids=ids_BT, attention_mask=mask_BT).logits.float()
            for index, score in zip(indices, logits_B1.squeeze(-1).tolist(), strict=True):
                scores[index] = score
        return checked(scores, len(samples), self.name)

    def _length(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _templated(self, turns: Sequence[Message], reply: Message) -> list[int]:
        messages = [{"role": turn.role, "content": turn.content} for turn in (*turns, reply)]
        try:
            text = render_template(self.tokenizer, messages)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise RewardError(
                f"reward {self.name!r}: its chat template refuses a conversation of {roles} "
                f"({reason_of(error.__cause__)}); leave such prompts out or use another reward model"
            ) from error
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _plain(self, turns: Sequence[Message], reply: Message) -> list[int]:
        lines = [turn.content if len(turns) == 1 else f"{turn.role}: {turn.content}" for turn in turns]
        prompt = "\n".join(lines)
        separators = self.tokenizer.num_special_tokens_to_add(pair=True) - self.tokenizer.num_special_tokens_to_add()
        if separators <= 0:
            return self.tokenizer(f"{prompt}\n{reply.content}")["input_ids"]
        reply_length = self._length(reply.content)
        room = self.max_length - reply_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room <= 0:  # the reply alone is too long: its tail is cut, the frame of special tokens stays
            cut = {"truncation": "only_second", "max_length": int(self.max_length)}
            return self.tokenizer("", reply.content, **cut)["input_ids"]
        prompt_ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if len(turns) == 1 and room < len(prompt_ids):
            prompt = self.tokenizer.decode(prompt_ids[-int(room) :])
        return self.tokenizer(prompt, reply.content)["input_ids"]

    def _defuse(self, text: str) -> str:
        for token in self._controls:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def _with_adapter(path: str | Path, adapter: Path, **load_kwargs: Any) -> torch.nn.Module:
    """The base model that the adapter at `path` names, with the adapter merged in.

    Raises:
        ModelFileError: torn, no safetensors, without a head of its own, or on a model that is not there.
    """
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    settings = read_json(adapter)
    weights = hub_file(path, ADAPTER_WEIGHTS, **load_kwargs)
    if weights is None:
        raise ModelFileError(f"{path} has an {ADAPTER} but no {ADAPTER_WEIGHTS}: save the adapter as safetensors")
    check_safetensors(weights)
    tensors, config = load_file(weights), peft_config(path, weights)
    heads = [name for name in tensors if name.endswith(HEADS)]
    if not heads:
        raise ModelFileError(
            f"{path} is an adapter without a head, which would be random: train it with modules_to_save: [score]"
        )
    base = settings.get("base_model_name_or_path") or ""
    own = {key: value for key, value in load_kwargs.items() if key != "revision"}
    try:
        own["config"] = load_config(base, num_labels=tensors[heads[0]].shape[0], **own)
        model = load_pretrained(AutoModelForSequenceClassification, base, optional=("score.", "classifier."), **own)
    except MissingFileError as error:
        raise ModelFileError(
            f"{path} is an adapter on the model {base!r}, which is not there: correct base_model_name_or_path in its "
            f"{ADAPTER} ({error})"
        ) from error
    config.inference_mode = True
    return put_on(model, config, tensors, path).merge_and_unload()  # the head, missing above, comes from the adapter
