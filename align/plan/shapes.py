"""The shapes of models: shipped ones by name (shapes.json, from the models' own config.json), folders, new ones."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from align.plan.families import FAMILIES, Family
from align.recipe.errors import did_you_mean
from align.runtime.errors import AlignError
from align.runtime.paths import typed_path

ADAPTER = "adapter_config.json"
# Parts of a name that tell how a model of a shape was finetuned, in which layout it is kept, or who gives it away.
SAME_SHAPE = {"instruct", "base", "chat", "thinking", "sft", "dpo", "it", "pt", "hf", "deduped", "meta", "2507"}

COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
OPTIONAL_COUNTS = ("num_key_value_heads", "head_dim")
EXPERT_COUNTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


class PlanError(AlignError, ValueError):
    """A model whose shape is not known, or a wish that cannot be read."""


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of each layer: how many there are, how many compute a token, and the units of one."""

    number: int
    active: int
    size: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What memory depends on; names are those of a transformers config.

    Attributes:
        intermediate_size: units of the MLP; beside experts those of the one that every token passes (0: there is none).
        biased: names of the linear layers with biases.
        caps_logits: whether the model changes logits behind its head, so that they are held whole.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    family: Family = FAMILIES["qwen2"]
    biased: tuple[str, ...] = FAMILIES["qwen2"].biased
    experts: Experts | None = None
    caps_logits: bool = False

    @property
    def query_size(self) -> int:
        """Width of the queries of one token."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of the keys of one token, and of its values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def active_size(self) -> int:
        """Units of the MLP, or of the experts, that compute one token."""
        return self.intermediate_size + (self.experts.active * self.experts.size if self.experts else 0)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one layer, by name."""
        h, f, q, k = self.hidden_size, self.intermediate_size, self.query_size, self.key_size
        outputs = {"q_proj": q, "k_proj": k, "v_proj": k, "qkv_proj": q + 2 * k, "query_key_value": q + 2 * k}
        outputs |= {"gate_proj": f, "up_proj": f, "gate_up_proj": 2 * f, "dense_h_to_4h": f, "shared_expert_gate": 1}
        groups = zip((h, q, h, f), self.family.linears, strict=False)
        return {name: (inputs, outputs.get(name, h)) for inputs, names in groups for name in names}

    @property
    def norms(self) -> dict[str, int]:
        """Width of the norms of one layer, by name."""
        family, found = self.family, dict.fromkeys(self.family.norms, self.hidden_size)
        if family.qk_norm != "no":
            by_head = family.qk_norm == "head"
            found |= {"q_norm": self.head_dim if by_head else self.query_size}
            found |= {"k_norm": self.head_dim if by_head else self.key_size}
        return found

    @classmethod
    def of_config(cls, config: dict[str, Any], name: str) -> Shape:
        """The shape of a config.json.

        Raises:
            PlanError: another family, or a key is missing.
        """
        kind = config.get("model_type", "qwen2")
        family = FAMILIES.get(kind) if isinstance(kind, str) else None
        if family is None:
            raise PlanError(f"{name}: the memory of '{kind}' models is not known; known are {', '.join(FAMILIES)}")
        expert_counts = EXPERT_COUNTS if family.moe else ()
        for key in (*COUNTS, *OPTIONAL_COUNTS, *expert_counts):
            value = config.get(key, 1)
            absent = value is None and key in OPTIONAL_COUNTS
            if not absent and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise PlanError(f"{name}: {key} must be a whole number above 0, is {value!r}")
        if family.moe and (config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers")):
            raise PlanError(f"{name}: only some of its layers have experts, which is not planned for")
        try:
            return cls(
                config["vocab_size"],
                config["hidden_size"],
                _units(config, family),
                config["num_hidden_layers"],
                heads := config["num_attention_heads"],
                config.get("num_key_value_heads") or heads,
                config.get("head_dim") or family.head_dim or config["hidden_size"] // heads,
                bool(config.get("tie_word_embeddings", family.tied)),
                family,
                _biased(config, family),
                Experts(*(config[key] for key in EXPERT_COUNTS)) if family.moe else None,
                config.get("final_logit_softcapping", family.softcap) is not None,
            )
        except KeyError as missing:
            raise PlanError(f"{name}: config.json lacks {missing}, which the memory depends on") from None


def _units(config: dict[str, Any], family: Family) -> int:
    if not family.moe:
        return config["intermediate_size"]
    return config["shared_expert_intermediate_size"] if len(family.linears) > 2 else 0


def _biased(config: dict[str, Any], family: Family) -> tuple[str, ...]:
    found = family.biased
    if config.get("attention_bias", family.attention_bias) and not set(found) & set(family.linears[0]):
        found = family.linears[0] + family.linears[1] + found
    if config.get("mlp_bias", False):
        found += family.linears[2] + family.linears[3]
    return found


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
    name, known = path.rstrip("/").rpartition("/")[2], shipped_shapes()
    if found := {_series(one): shape for one, shape in known.items()}.get(_series(name)):
        return found
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cached = sorted(home.glob(f"hub/models--{path.replace('/', '--')}/snapshots/*/config.json"))
    if cached:
        return _read(cached[-1], key)
    near = did_you_mean(name, known)
    hint = f"did you mean '{near}'? " if near else ""
    names = ", ".join(dict.fromkeys(one.rpartition("-")[0] for one in known))
    raise PlanError(
        f"{key}: the shape of '{path}' is not known; {hint}name a folder with its config.json, or one of these by its "
        f"size: {names}"
    )


def _series(name: str) -> str:
    return "-".join(part for part in name.lower().split("-") if part not in SAME_SHAPE)


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
