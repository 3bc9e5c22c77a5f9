"""Where rewards come from: our own reward model, a foreign classifier (`reward.classifier`), or a Python function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.runtime.padding import pad_right
from data_formats.chat_format import chat_format
from data_formats.chatml import encode_texts, with_reasoning
from data_formats.records import Message
from reward.classifier import ClassifierReward
from reward.forward import forward_errors, position_room
from reward.functions import ColumnsFunction, name_of
from reward.loading import check_vocabulary, saved_tokenizer
from reward.model import RewardModel
from reward.protocol import Reward, Sample
from reward.scoring import batches_by_length, checked, require_room
from reward.shared import group_batches, layout_for, same_prompts

RewardFunction = Callable[..., Sequence[float]]


class ModelReward:
    """A `RewardModel` on the policy's own tokens.

    A sample with ids is scored on `prompt_ids + completion_ids`; where the completion does not end with its end token
    (`<|im_end|>`; the policy was cut off) that token is appended, since the score is read at it: an unfinished reply is
    scored as it stands, and punishing it is the trainer's business (`missing_eos_penalty`). A sample without ids is
    rendered as the model speaks (`data_formats.chat_format`), up to the reply's end token.

    Several replies to one prompt are scored with the prompt computed once, where the backbone allows it; scores are
    those of scoring them apart, up to rounding.

    Args:
        model: the reward model (or a wrapper of it whose forward is the same).
        tokenizer: the one it was trained with.
        batch_size: sequences held at once.
        name: for logs and errors.
        share_prompts: False: score every reply apart; None: share where the backbone takes flat rows (`reward.flat`);
            True: in padded ones too (`reward.layout`), which eager attention takes.

    Attributes:
        batch_tokens: tokens held at once, for whoever bounds them (`align serve-reward`); a sample of more is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        batch_size: int = 64,
        name: str = "reward_model",
        *,
        share_prompts: bool | None = None,
    ):
        self.model, self.tokenizer, self.batch_size, self.name = model, tokenizer, batch_size, name
        self.share_prompts = share_prompts
        self.batch_tokens: int | None = None
        self.end_id = chat_format(tokenizer).end_id

    def token_rows(self, samples: Sequence[Sample]) -> list[list[int]]:
        """The ids each sample is scored on, the end token last."""
        without = [
            index for index, sample in enumerate(samples) if sample.completion_ids is None or sample.prompt_ids is None
        ]
        replies = with_reasoning(Message("assistant", samples[i].completion) for i in without)
        speaker = chat_format(self.tokenizer)
        texts = [
            [*speaker.render(samples[i].prompt, add_generation_prompt=True), *speaker.render_reply(reply)]
            for i, reply in zip(without, replies, strict=True)
        ]
        encoded = dict(zip(without, speaker.encode(texts), strict=True))
        rows = []
        for index, sample in enumerate(samples):
            if index in encoded:
                rows.append(encoded[index])
                continue
            row = [*sample.prompt_ids, *sample.completion_ids]
            ended = bool(sample.completion_ids) and sample.completion_ids[-1] == self.end_id
            rows.append(row if ended else [*row, self.end_id])
        return rows

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """One score a sample, in evaluation mode; the model's mode is put back.

        Raises:
            RewardError: the model failed, or has no room for a reply; a score that is not finite.
        """
        return checked(self.outputs(samples), len(samples), self.name)

    @torch.no_grad()
    def outputs(self, samples: Sequence[Sample]) -> list[Any]:
        """What the model gives of each sample, unchecked: a number, a list where its head has several units.

        Raises: as of `score`.
        """
        rows = self.token_rows(samples)
        require_room(rows, self.batch_tokens, self.name)
        device = next(self.model.parameters()).device
        scores: list[Any] = [math.nan] * len(rows)
        training = self.model.training
        room = position_room(self.model, own_positions=True)
        self.model.eval()
        try:
            for indices, inputs in self._batches(samples, rows):
                asked = [rows[index] for index in indices]
                with forward_errors(self.name, self.model, asked, self._reply_length(samples, indices), room):
                    found_N = self.model(**{name: value.to(device) for name, value in inputs.items()})
                for index, score in zip(indices, found_N.tolist(), strict=True):
                    scores[index] = score
        finally:
            self.model.train(training)
        return scores

    def _reply_length(self, samples: Sequence[Sample], indices: list[int]) -> Callable[[int], int]:
        def length(at: int) -> int:
            sample = samples[indices[at]]
            ids = sample.completion_ids
            return len(encode_texts(self.tokenizer, [sample.completion])[0] if ids is None else ids)

        return length

    def _batches(
        self, samples: Sequence[Sample], rows: list[list[int]]
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        layout, alone = layout_for(self.model, self.end_id, self.share_prompts), list(range(len(rows)))
        if layout is not None:
            prompts = [sample.prompt_ids if sample.completion_ids is not None else None for sample in samples]
            most = self.batch_size
            if self.batch_tokens is not None:
                most = min(most, self.batch_tokens // max(map(len, rows), default=1))
            groups, alone = same_prompts(prompts, most)
            cuts = [len(samples[group[0]].prompt_ids) for group in groups]
            yield from group_batches(groups, cuts, rows, most, layout)
        for batch in batches_by_length([len(rows[index]) for index in alone], self.batch_size, self.batch_tokens):
            indices = [alone[at] for at in batch]
            ids_BT, mask_BT = pad_right([rows[index] for index in indices], self.end_id)
            yield indices, {"input_ids": ids_BT, "attention_mask": mask_BT}


class FunctionReward:
    """A Python function as reward: `fn(prompts, completions, **columns) -> one float a reply`.

    `prompts` are lists of `{"role", "content"}`, `completions` strings; every column of the prompts' records comes as a
    list (None where a record lacks it). A function without `**kwargs` gets only the columns that it names.
    """

    def __init__(self, fn: RewardFunction, name: str | None = None):
        if not callable(fn):
            raise TypeError(f"FunctionReward: must be a function (prompts, completions, **columns), not {fn!r}")
        self.fn, self.name = fn, name or name_of(fn)
        self._function = ColumnsFunction(fn, f"reward {self.name!r}", ("prompts", "completions"))

    def score(self, samples: Sequence[Sample]) -> list[float]:
        """What the function gives, checked.

        Raises:
            RewardError: the function failed, or gave something else than one finite float a sample.
        """
        if not samples:
            return []
        return checked(self._function(samples, [sample.completion for sample in samples]), len(samples), self.name)


def load_reward(
    path: str | Path,
    *,
    batch_size: int = 64,
    name: str = "reward_model",
    device: str | torch.device | None = None,
    share_prompts: bool | None = None,
    **load_kwargs: Any,
) -> Reward:
    """A frozen reward from a folder or hub id: `ModelReward` where that holds a `reward_config.json`, else
    `ClassifierReward`.

    Args:
        batch_size: sequences held at once.
        name: for logs and errors.
        device: where to put the model, default: where it is loaded.
        share_prompts: see `ModelReward`; a classifier scores every reply apart.
        load_kwargs: `dtype`, `revision`, `trust_remote_code`, `attn_implementation`, ... as of `from_pretrained`.

    Raises:
        MissingFileError, ModelFileError: nothing there, or torn.
    """
    if not RewardModel.is_saved_at(path, **load_kwargs):
        own = {key: value for key, value in load_kwargs.items() if key != "attn_implementation"}  # what it supports
        return ClassifierReward(path, batch_size=batch_size, name=name, device=device, **own)
    model = RewardModel.from_pretrained(path, **load_kwargs).requires_grad_(False)
    if device is not None:
        model.to(device)
    tokenizer = saved_tokenizer(path, **load_kwargs)
    check_vocabulary(model, tokenizer, path)
    return ModelReward(model, tokenizer, batch_size, name, share_prompts=share_prompts)
