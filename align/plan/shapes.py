"""The shapes of models: shipped ones by name (shapes.json, from the models' own config.json), folders, new ones.

Known families share one layer: RMSNorm, grouped attention with rotary positions, RMSNorm, gated MLP. They differ in
biases and in the norms of queries and keys (Qwen3).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from align.recipe.errors import did_you_mean
from align.runtime.errors import AlignError
from align.runtime.paths import typed_path

ADAPTER = "adapter_config.json"
FAMILIES = ("qwen2", "qwen3", "llama", "mistral")
SAME_SHAPE = ("-Instruct", "-Base")  # what finetuned models of a shape are called besides


COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
OPTIONAL_COUNTS = ("num_key_value_heads", "head_dim")


class PlanError(AlignError, ValueError):
    """A model whose shape is not known, or a wish that cannot be read."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What memory depends on; names are those of a transformers config.

    Attributes:
        qkv_bias, output_bias: whether q, k, v and o have biases.
        mlp_bias: whether the MLP's layers have.
        qk_norm: whether queries and keys are normalised head by head.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    qkv_bias: bool = True
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def query_size(self) -> int:
        """Width of the queries of one token."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of the keys of one token, and of its values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one layer, by name."""
        h, f, q, k = self.hidden_size, self.intermediate_size, self.query_size, self.key_size
        attention = {"q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}

    @classmethod
    def of_config(cls, config: dict[str, Any], name: str) -> Shape:
        """The shape of a config.json.

        Raises:
            PlanError: another family, or a key is missing.
        """
        family = config.get("model_type", "qwen2")
        if not isinstance(family, str) or family not in FAMILIES:
            raise PlanError(f"{name}: the memory of '{family}' models is not known; known are {', '.join(FAMILIES)}")
        for key in (*COUNTS, *OPTIONAL_COUNTS):
            value = config.get(key, 1)
            absent = value is None and key in OPTIONAL_COUNTS
            if not absent and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise PlanError(f"{name}: {key} must be a whole number above 0, is {value!r}")
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            bias = bool(config.get("attention_bias", False))
            return cls(
                config["vocab_size"],
                hidden,
                config["intermediate_size"],
                config["num_hidden_layers"],
                heads,
                config.get("num_key_value_heads") or heads,
                config.get("head_dim") or hidden // heads,
                bool(config.get("tie_word_embeddings", False)),
                qkv_bias=family == "qwen2" or bias,
                output_bias=family != "qwen2" and bias,
                mlp_bias=bool(config.get("mlp_bias", False)),
                qk_norm=family == "qwen3",
            )
        except KeyError as missing:
            raise PlanError(f"{name}: config.json lacks {missing}, which the memory depends on") from None


@cache
def shipped_shapes() -> dict[str, Shape]:
    """Name to shape of the models that the plan knows without their files."""
    rows = json.loads((Path(__file__).parent / "shapes.json").read_text(encoding="utf-8"))
    return {name: Shape.of_config(row, name) for name, row in rows.items()}


def find_shape(path: str, key: str = "model.path") -> Shape:
    """The shape of a folder (its config.json; an adapter's is that of its base), a shipped name with or without its
    organisation, or a model that the hub's cache on this machine holds.

    Raises:
        PlanError: none of these.
    """
    folder = typed_path(path)
    if (folder / "config.json").is_file():
        return _read(folder / "config.json", key)
    if (folder / ADAPTER).is_file():
        return find_shape(_base_of(folder / ADAPTER, key), f"{key}: {folder / ADAPTER}: base_model_name_or_path")
    name = path.rstrip("/").rpartition("/")[2]
    for ending in ("", *SAME_SHAPE):
        if name.endswith(ending) and (found := shipped_shapes().get(name.removesuffix(ending))):
            return found
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cached = sorted(home.glob(f"hub/models--{path.replace('/', '--')}/snapshots/*/config.json"))
    if cached:
        return _read(cached[-1], key)
    near = did_you_mean(name, shipped_shapes())
    hint = f"did you mean '{near}'? " if near else ""
    raise PlanError(
        f"{key}: the shape of '{path}' is not known; {hint}name a folder with its config.json, or one of "
        f"{', '.join(shipped_shapes())}"
    )


def _read(file: Path, key: str) -> Shape:
    return Shape.of_config(_json(file, key), f"{key}: {file}")


def _base_of(file: Path, key: str) -> str:
    base = _json(file, key).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise PlanError(f"{key}: {file} does not name its base model in base_model_name_or_path")
    folder = typed_path(base)
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file():
        raise PlanError(f"{key}: {file} names {base} as its base model, which is an adapter itself")
    return base


def _json(file: Path, key: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PlanError(f"{key}: {file} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise PlanError(f"{key}: {file} holds no JSON object")
    return found
