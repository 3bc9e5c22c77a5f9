"""Tiny models and tokenizers for tests, made from the third-party libraries alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def byte_tokenizer(
    *, chat_template: str | None = None, merges: tuple[tuple[str, str], ...] = ()
) -> PreTrainedTokenizerFast:
    """One id a byte (0-255), one a merge, then the three ChatML control tokens (256-258 without merges)."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(CONTROLS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(CONTROLS),
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def bert_tokenizer(words: str) -> PreTrainedTokenizerFast:
    """Words split at blanks, `[CLS] a [SEP] b [SEP]` for pairs, no chat template; ids 0-3 are the special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: index for index, word in enumerate([*special, *sorted(set(words.split()))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def qwen2_config(**changes: Any) -> Qwen2Config:
    """Width 16, two layers, the byte tokenizer's vocabulary."""
    shape = {
        "vocab_size": 259,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": 258,
        "initializer_range": 0.3,
    }
    return Qwen2Config(**(shape | changes))


def save_causal_lm(folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Path:
    """A random `Qwen2ForCausalLM` with its tokenizer in `folder`."""
    torch.manual_seed(seed)
    Qwen2ForCausalLM(qwen2_config(**changes)).to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def ragged_ids(lengths: tuple[int, ...] = (3, 9, 6), seed: int = 0) -> list[list[int]]:
    """Random byte ids that end with `<|im_end|>`; the pad token's id occurs inside on purpose."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]
    return [[*row[:1], 256, *row[2:-1], 258] for row in rows]
