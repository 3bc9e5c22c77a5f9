"""A model that is talked to: its tokenizer, which knows how it speaks, and the engine that samples from it.

Tokens are drawn by the rollouts' engines, their sampler and their end tokens. vLLM is taken by the rollouts' rule, on a
GPU where it is installed; the weights then go to vLLM and leave this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from align.chat.conversation import ChatError
from align.data.encode import encode_prompts
from align.evaluation.scoring import best_device
from align.models.load import load_saved
from align.models.named import speaks_as
from align.models.tokenizer import load_saved_tokenizer
from align.runtime.errors import AlignError
from align.runtime.packages import is_installed
from align.runtime.peft_model import base_of
from data_formats.chat_format import RawFormat, chat_format
from data_formats.records import Message
from rollouts.protocol import Engine, SamplingParams
from rollouts.select import filled, make_engine
from rollouts.settings import VLLMSettings

MOST_TOKENS = 16384  # of a conversation with vLLM, which holds room for the longest one
MEMORY_SHARE = 0.85  # of a GPU that nothing else wants


class Speaker:
    """One model.

    Args:
        path: folder or hub id of a model or adapter.
        name: on the screen and in what is written.
        engine: `auto`, `hf` or `vllm`.
        temperature: replies will be sampled at, for vLLM.

    Attributes:
        room: tokens that a conversation with its last reply may have; None: no bound is known.
        has_turns: False for one that takes a prompt and writes its completion.

    Raises:
        MissingFileError, ModelFileError, TokenizerError: no such model, a torn one, or one that cannot speak.
        RolloutError, MissingPackageError: vLLM is asked for and cannot be had.
    """

    def __init__(self, path: str, name: str, *, engine: str = "auto", temperature: float = 1.0):
        self.path, self.name, self.tokenizer = path, name, load_saved_tokenizer(speaks_as(path))
        self.format = chat_format(self.tokenizer)
        self.has_turns = not isinstance(self.format, RawFormat)
        module = load_saved(path, self.tokenizer)
        self.room: int | None = getattr(
            base_of(module).config.get_text_config(decoder=True), "max_position_embeddings", None
        )
        device = best_device()
        if engine == "vllm" or (engine == "auto" and device.type == "cuda" and is_installed("vllm")):
            self.room = min(self.room or MOST_TOKENS, MOST_TOKENS)
            self.engine = self._in_vllm(module, temperature)
        else:
            module.to(device)
            self.engine = make_engine("hf", module, pad_token_id=self.tokenizer.pad_token_id)

    def _in_vllm(self, module: Any, temperature: float) -> Engine:
        settings = VLLMSettings(max_model_len=self.room, memory_share=MEMORY_SHARE, adapters="merge")
        pad = self.tokenizer.pad_token_id
        return filled(make_engine("vllm", module, pad_token_id=pad, vllm=settings, temperature=temperature), module)

    def encode(
        self, turns: Sequence[Sequence[Message]], tools: Sequence[Sequence[str]] | None = None
    ) -> list[list[int]]:
        """Ids of conversations, each with the opening of the reply.

        Raises:
            DataError: turns that the model's template has no place for.
        """
        return encode_prompts(self.tokenizer, turns, tools)

    def params(self, params: SamplingParams, longest: int) -> SamplingParams:
        """How a reply to a prompt of so many tokens is sampled: with the model's end tokens, and within its context.

        Raises:
            ChatError: the context has no room for a reply.
        """
        room = params.max_new_tokens if self.room is None else self.room - longest
        if room < 1:
            raise ChatError(
                f"{self.name}: the prompt has {longest} tokens with its history, and the model's context {self.room}: "
                "shorten it, or leave earlier turns out"
            )
        return replace(params, max_new_tokens=min(params.max_new_tokens, room), stop_token_ids=self.format.stop_ids)

    def reply(self, prompt: list[int], params: SamplingParams, heard: Callable[[str], None]) -> tuple[list[int], str]:
        """The reply's ids, and why it ended: "stop", "length", or "stopped" by an interrupt.

        Args:
            heard: is told the text so far whenever a character is whole.
        """
        ids: list[int] = []

        def drawn(token: int) -> None:
            ids.append(token)
            text = self.text(ids)
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                heard(text)

        try:
            completion = self.engine.stream(prompt, self.params(params, len(prompt)), drawn)
        except KeyboardInterrupt:
            return ids, "stopped"
        return list(completion.token_ids), completion.finish_reason

    def text(self, ids: Sequence[int]) -> str:
        """A reply's text, without control tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def close(self) -> None:
        """Let go of the model."""
        with suppress(AlignError):
            self.engine.close()
