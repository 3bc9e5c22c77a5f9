"""`align merge`: a whole model from an adapter's folder.

An adapter on plain weights is merged into them: in float32, rounded once to the dtype that is asked for. An adapter on
4-bit weights (QLoRA) was trained to go with their rounding, and there is no merging back into 4 bits, which would round
most of it away. Two ways are left, and neither is chosen for the user: into the 4-bit weights as they are, made wide
again (`dequantize`: the model that was trained, whose base keeps the rounding, at full size), or into the weights that
were quantised (`base`: no rounding, but not quite the model that was trained).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.models.card import write_made_from
from align.models.critic import Critic
from align.models.save import save_model
from align.runtime.errors import AlignError
from align.runtime.files import require_new
from align.runtime.paths import typed_path
from align.runtime.peft_model import base_of
from reward import adapter
from reward.errors import ModelFileError
from reward.folder import staged
from reward.headed import HeadedModel
from reward.loading import check_vocabulary, hub_file, load_config, saved_tokenizer
from reward.model import RewardModel

OWN_BASE = "own"  # in place of a path: the base that the adapter names


class MergeError(AlignError, ValueError):
    """An adapter that cannot be merged in the way that was asked for."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written: its kind in words, its bytes, and those of adapter and base as they are held for use."""

    kind: str
    base: str
    quantised: bool
    size: int


def merge_folder(
    path: str | Path,
    out_dir: str | Path,
    *,
    dequantize: bool = False,
    base: str | Path | None = None,
    dtype: str = "auto",
    **load_kwargs: Any,
) -> Merged:
    """Write the adapter at `path`, merged into its base, to `out_dir`: safetensors, config and tokenizer.

    Args:
        path: folder or hub id of an adapter of a language model, or of a reward model or critic of this project.
        out_dir: a folder that does not exist yet, or is empty.
        dequantize: merge into 4-bit weights made wide again.
        base: merge into the full-precision model there, `OWN_BASE` for that of the adapter's own configuration.
        dtype: of the weights; `auto`: as the base was saved.
        load_kwargs: `revision`, `trust_remote_code`, …

    Raises:
        ModelFileError: no adapter there, or a torn one.
        MergeError: 4-bit weights and neither way named, a way that does not fit, or another kind of adapter.
        MissingFileError: the base is not where it was.
        StorageError: `out_dir` holds something, or cannot be written.
    """
    out_dir = typed_path(out_dir)
    require_new(out_dir, "merge")
    config = _adapter_config(path, load_kwargs)
    kind = _kind(path, config, load_kwargs)
    named = config["base_model_name_or_path"]
    quantised = _quantised(path, dequantize=dequantize, base=base, **load_kwargs)
    where = None if base in (None, OWN_BASE) else str(base)
    model, stated = _loaded(kind, path, base=where, dequantize=quantised and dequantize, **load_kwargs)
    body = model.backbone if isinstance(model, HeadedModel) else model
    merged = _merged(body, path).to(stated if dtype == "auto" else getattr(torch, dtype))
    if isinstance(model, HeadedModel):
        model.backbone, merged = merged, model
    tokenizer = _tokenizer(path, where or named, load_kwargs)
    check_vocabulary(merged, tokenizer, path)
    with staged(out_dir) as folder:
        save_model(merged, tokenizer, folder)
        made = "Made by `align merge`: an adapter, merged into its base."
        if quantised:
            into = "these, made wide again" if dequantize else "the full-precision base, on which it was not measured"
            made = f"Made by `align merge`: an adapter that was trained on 4-bit weights, merged into {into}."
        write_made_from(folder, path, out_dir.name, made, **load_kwargs)
    size = sum(file.stat().st_size for file in out_dir.glob("*.safetensors"))
    return Merged(_words(kind), where or named, quantised, size)


def _adapter_config(path: str | Path, options: dict[str, Any]) -> dict[str, Any]:
    if hub_file(path, adapter.CONFIG, **options) is None and hub_file(path, "config.json", **options) is not None:
        raise ModelFileError(f"{path} holds a whole model, not an adapter: there is nothing to merge")
    return adapter.saved_config(path, **options)


def _kind(path: str | Path, config: dict[str, Any], options: dict[str, Any]) -> Any:
    for kind in (RewardModel, Critic):
        if kind.is_saved_at(path, **options):
            return kind
    if config.get("task_type") != "CAUSAL_LM":
        raise MergeError(
            f"{path} is an adapter of the kind {config.get('task_type')}; what can be merged are adapters of causal "
            "language models, and reward models and critics of this project"
        )
    return None


def _words(kind: Any) -> str:
    return {RewardModel: "reward model", Critic: "critic"}.get(kind, "language model")


def _quantised(path: str | Path, *, dequantize: bool, base: str | Path | None, **options: Any) -> bool:
    quantised = adapter.saved_quantization(path, _settings(path, options), **options) is not None
    if dequantize and base is not None:
        raise MergeError("--dequantize and --base are two ways to merge: choose one of them")
    if dequantize and not quantised:
        raise MergeError(
            f"{path} is an adapter on plain weights: there is nothing to dequantise; leave --dequantize out"
        )
    if quantised and not dequantize and base is None:
        raise MergeError(
            f"{path} is an adapter on 4-bit weights, into which it cannot be merged without rounding it away: give "
            "--dequantize (the model as it was trained, the base's rounding to 4 bits included, at full size), or "
            "--base [MODEL] (into the full-precision base, which the adapter was not trained on)"
        )
    return quantised


def _settings(path: str | Path, options: dict[str, Any]) -> dict[str, Any] | None:
    from reward.folder import read_json

    file = hub_file(path, RewardModel.settings_file, **options)
    return None if file is None else read_json(file)


def _loaded(
    kind: Any, path: str | Path, *, base: str | None, dequantize: bool, **load_kwargs: Any
) -> tuple[nn.Module, torch.dtype]:
    """The model with its adapter in float32, and the dtype that its base was saved in."""
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32, "base": base, "dequantize": dequantize} | load_kwargs
    if not dequantize:
        options["quantization_config"] = None
    if kind is None:
        model = adapter.load_body(path, auto_class=AutoModelForCausalLM, trainable=False, **options)
    else:
        model = kind.from_pretrained(path, **options)
    kept = {key: value for key, value in load_kwargs.items() if key != "revision"}
    where = model.backbone if isinstance(model, HeadedModel) else model
    saved = load_config(base_of(where).name_or_path, **kept).dtype
    return model, saved or torch.float32


def _merged(body: nn.Module, path: str | Path) -> nn.Module:
    from align.models.adapters import merged

    return merged(body, path)


def _tokenizer(path: str | Path, base: str, options: dict[str, Any]) -> Any:
    own = hub_file(path, "tokenizer_config.json", **options) is not None
    return saved_tokenizer(path if own else base, **options)
