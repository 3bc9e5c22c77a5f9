"""Qwen-1 checkpoints (Qwen-1.8B to 72B, their Chat versions) as native Qwen2 models that give the same logits.

Qwen-1 (Bai et al. 2023, 2309.16609, section 2.3) came with code of its own and a tiktoken vocabulary. Its layer is that
of Qwen2 under other names: queries, keys and values are one matrix with a bias (`c_attn`), the MLP is `c_proj(w1(x) *
silu(w2(x)))`, and `intermediate_size` counts w1 and w2 together. What differs is for rows longer than the model was
trained with (`seq_length`): LogN scaling multiplies the query at position i by max(1, log(i) / log(seq_length)), and
dynamic NTK raises the base of the rotations by a factor that is 1 for rows of up to `seq_length` tokens. Both are
exactly 1 there, so the logits are equal; Qwen2 has neither, so the converted model says that it ends there.

The vocabulary becomes Qwen2's own byte-level BPE, which has the same pattern and normal form: the same text gives the
same ids, those of the control tokens included.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from align.models.card import write_made_from
from align.models.save import save_model
from align.runtime.errors import AlignError, MissingFileError
from align.runtime.files import require_new
from align.runtime.paths import typed_path
from data_formats.chatml import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START
from reward.errors import ModelFileError
from reward.folder import WEIGHTS, WEIGHTS_INDEX, check_model_folder, local_folder, read_json, staged
from reward.loading import check_vocabulary, hub_file

VOCABULARY = "qwen.tiktoken"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END, *(f"<|extra_{at}|>" for at in range(205)))  # behind the vocabulary
NAMES = {
    "wte.weight": "embed_tokens.weight",
    "ln_f.weight": "norm.weight",
    "ln_1.weight": "input_layernorm.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}
QUERIES_KEYS_VALUES = "attn.c_attn."
# Bytes in the order of the letters that byte-level BPEs write them in: printable Latin-1, then the others.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = _PRINTABLE + [byte for byte in range(256) if byte not in _PRINTABLE]
NOT_SAVED_BY_QWEN2 = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")  # made anew


class ConversionError(AlignError, ValueError):
    """A checkpoint that has no equal among Qwen2 models."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: parameters, tokens of the longest row, and whether Qwen-1 would go on beyond them."""

    parameters: int
    max_length: int
    extrapolates: bool


def convert_qwen(
    path: str | Path, out_dir: str | Path, *, dtype: str = "auto", revision: str | None = None
) -> Converted:
    """Write the Qwen-1 checkpoint at `path` (folder or hub id) to `out_dir` as a `Qwen2ForCausalLM` with its tokenizer.

    Args:
        out_dir: a folder that does not exist yet, or is empty.
        dtype: of the weights; `auto`: as they are.

    Raises:
        ConversionError: another model, or options that Qwen2 does not have.
        ModelFileError: torn or incomplete files, or a pickle in place of safetensors.
        StorageError: `out_dir` holds something, or cannot be written.
    """
    from transformers import Qwen2ForCausalLM

    out_dir = typed_path(out_dir)
    require_new(out_dir, "convert")
    folder = local_folder(path)
    if folder is not None:
        check_model_folder(folder)
    saved = read_json(_file(path, "config.json", revision))
    config = _qwen2_config(saved, path)
    tokenizer = load_vocabulary(_file(path, VOCABULARY, revision))
    weights = {}
    for file in _weight_files(path, revision):
        for name, tensor in load_file(file).items():
            weights |= dict(_renamed(name, tensor, path))
    if dtype != "auto":
        weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).eval()
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise ModelFileError(f"{path} holds other weights than its config.json says ({first})") from None
    model.config.dtype = model.dtype
    check_vocabulary(model, tokenizer, path)
    with staged(out_dir) as draft:
        save_model(model, tokenizer, draft)
        made = "A Qwen-1 checkpoint as a native Qwen2 model with equal logits, made by `align convert-qwen`."
        write_made_from(draft, path, out_dir.name, made, revision=revision)
    return Converted(model.num_parameters(), config.max_position_embeddings, _extrapolates(saved))


def _qwen2_config(saved: dict[str, Any], path: str | Path) -> Any:
    from transformers import Qwen2Config

    if saved.get("model_type") != "qwen":
        kind = saved.get("model_type")
        raise ConversionError(f"{path} is no Qwen-1 checkpoint: its config.json says model_type '{kind}', not 'qwen'")
    if "quantization_config" in saved:
        raise ConversionError(f"{path} holds quantised weights: convert the checkpoint that they were made of")
    try:
        heads, hidden = saved["num_attention_heads"], saved["hidden_size"]
        wanted = {"rotary_pct": 1.0, "no_bias": True, "scale_attn_weights": True, "kv_channels": hidden // heads}
        for key, value in wanted.items():
            if saved.get(key, value) != value:
                told = f"config.json says {key} {saved[key]}, and Qwen2 can only be as with {key} {value}"
                raise ConversionError(f"{path} has no equal among Qwen2 models: {told}")
        longest = saved["seq_length"] if _extrapolates(saved) else saved["max_position_embeddings"]
        return Qwen2Config(
            vocab_size=saved["vocab_size"],
            hidden_size=hidden,
            intermediate_size=saved["intermediate_size"] // 2,
            num_hidden_layers=saved["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=longest,
            rms_norm_eps=saved["layer_norm_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": float(saved["rotary_emb_base"])},
            tie_word_embeddings=bool(saved.get("tie_word_embeddings", False)),
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ModelFileError(f"{path}: config.json is not that of a Qwen-1 model ({error})") from None


def _extrapolates(saved: dict[str, Any]) -> bool:
    return bool(saved.get("use_logn_attn") or saved.get("use_dynamic_ntk"))


def _renamed(name: str, tensor: Tensor, path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """A weight under the names that it has in Qwen2; of `c_attn` three."""
    short = name.removeprefix("transformer.")
    layer, _, rest = short.removeprefix("h.").partition(".") if short.startswith("h.") else ("", "", short)
    place = f"model.layers.{layer}." if layer else "model."
    if name == "lm_head.weight":
        yield name, tensor
    elif rest in NAMES:
        yield place + NAMES[rest], tensor
    elif rest.startswith(QUERIES_KEYS_VALUES):
        kind = rest.removeprefix(QUERIES_KEYS_VALUES)
        for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{place}self_attn.{part}_proj.{kind}", chunk.contiguous()
    elif not rest.endswith(NOT_SAVED_BY_QWEN2):
        raise ConversionError(f"{path} holds a weight that Qwen2 has no place for: {name}")


def load_vocabulary(file: Path) -> Any:
    """A `qwen.tiktoken` (a token in base64 and its rank a line) as a `Qwen2Tokenizer`: same text, same ids.

    Raises:
        ModelFileError: a line is none, or a token cannot be put together from shorter ones.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    ranks = _read_ranks(file)
    letters = dict(zip(_BYTES, sorted(ByteLevel.alphabet()), strict=True))
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [pair for token in vocabulary for pair in _merges_into(token, vocabulary)]
    first = len(ranks)
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary | {token: first + at for at, token in enumerate(CONTROL_TOKENS)},
        merges=merges,
        unk_token=None,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in CONTROL_TOKENS if token not in (IM_END, END_OF_TEXT)],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    bpe = tokenizer.backend_tokenizer.model
    if unmade := next((token for token in vocabulary if len(bpe.tokenize(token)) > 1), None):  # tiktoken looks it up
        raise ModelFileError(f"{file}: the token {unmade!r} does not come of merging shorter ones: copy the file again")
    return tokenizer


def _merges_into(token: str, ranks: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The one merge that makes `token`: of what joining its bytes by rank, those below its own alone, leaves of it."""
    parts = list(token)
    while len(parts) > 2:
        joins = [(ranks.get(left + right, ranks[token]), at) for at, (left, right) in enumerate(pairwise(parts))]
        rank, at = min(joins)
        if rank == ranks[token]:
            return
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    if len(parts) == 2:
        yield parts[0], parts[1]


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ModelFileError(f"{file}:{number}: no token in base64 with its rank: copy the file again") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise ModelFileError(f"{file} is no whole vocabulary (ranks from 0 on, all 256 bytes): copy it again")
    return ranks


def _weight_files(path: str | Path, revision: str | None) -> list[Path]:
    index = hub_file(path, WEIGHTS_INDEX, revision=revision)
    names = [WEIGHTS] if index is None else sorted(set(read_json(index).get("weight_map", {}).values()))
    return [_file(path, name, revision) for name in names]


def _file(path: str | Path, name: str, revision: str | None) -> Path:
    file = hub_file(path, name, revision=revision)
    if file is None:
        raise MissingFileError(f"{path} holds no {name}, which a Qwen-1 checkpoint in safetensors has")
    return file
