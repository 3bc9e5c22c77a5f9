"""Models behind a peft adapter (LoRA), over plain or 4-bit weights (bitsandbytes).

Saved is the adapter in peft's own format (`adapter_config.json`, `adapter_model.safetensors`), and beside it how the
base is quantised (`base_quantization.json`); a reward model's head and settings lie there too. The base model is found
again where it was (`base_model_name_or_path`).

An adapter of a causal language model goes on that model's body as well (a reward model, a critic): the head's part of
it is left behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from align.runtime.errors import MissingFileError, reason_of
from align.runtime.peft_model import base_of, is_peft
from reward.errors import ModelFileError
from reward.folder import check_safetensors, local_folder, read_json
from reward.loading import hub_file, load_pretrained, quiet
from reward.stock import HEADS, PEFT_ROOT

CONFIG, WEIGHTS, QUANTIZATION = "adapter_config.json", "adapter_model.safetensors", "base_quantization.json"
CARD, HEAD = "README.md", "lm_head"


def quantization_4bit(compute_dtype: Any = "bfloat16", *, kind: str = "nf4", double_quant: bool = True) -> Any:
    """4-bit weights (Dettmers et al. 2023, QLoRA: NF4 with double quantisation), for `quantization_config=`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def keep_unpacked(body: nn.Module) -> None:
    """Keep 4-bit weights as they are: bitsandbytes repacks them on some CPUs at the first forward without gradients,
    and gradients are lost from then on."""
    if not getattr(body, "is_loaded_in_4bit", False):
        return
    import bitsandbytes

    for module in body.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def is_saved_at(path: str | Path, **hub_options: Any) -> bool:
    """Whether a folder or hub id holds an adapter, and no whole model."""
    if hub_file(path, CONFIG, **hub_options) is None:
        return False
    return hub_file(path, "config.json", **hub_options) is None


def save_body(backbone: nn.Module, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write the adapter alone where there is one, else the whole backbone; `state` is its gathered state."""
    if not is_peft(backbone):
        backbone.save_pretrained(folder, state_dict=state)
        return
    backbone.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (Path(folder) / CARD).unlink(missing_ok=True)  # a form of PEFT's that nobody filled in
    config = getattr(backbone.config, "quantization_config", None)
    if config is not None:
        values = _plain(config if isinstance(config, dict) else config.to_dict())
        (Path(folder) / QUANTIZATION).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def saved_config(path: str | Path, **hub_options: Any) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        ModelFileError: not there, damaged, or without the base model's name.
    """
    file = hub_file(path, CONFIG, **hub_options)
    if file is None:
        raise ModelFileError(f"{path} holds no adapter: it has no {CONFIG}")
    config = read_json(file)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelFileError(f"{path}/{CONFIG}: 'base_model_name_or_path' must name the base model, found {base!r}")
    return config


def saved_quantization(path: str | Path, settings: dict[str, Any] | None = None, **hub_options: Any) -> Any:
    """How the base of the adapter at `path` is quantised, None for plain weights.

    Args:
        settings: of a reward model, which held it before `base_quantization.json` did.
    """
    from transformers import BitsAndBytesConfig

    file = hub_file(path, QUANTIZATION, **hub_options)
    values = read_json(file) if file is not None else (settings or {}).get("base_quantization")
    try:
        return None if values is None else BitsAndBytesConfig.from_dict(values)
    except Exception as error:
        raise ModelFileError(f"{path}: how its base is quantised cannot be read: {reason_of(error)}") from error


def load_body(
    path: str | Path,
    settings: dict[str, Any] | None = None,
    *,
    auto_class: Any = None,
    trainable: bool = True,
    base: str | Path | None = None,
    dequantize: bool = False,
    **load_kwargs: Any,
) -> nn.Module:
    """The base model with the adapter on it.

    Args:
        path: folder or hub id of the adapter.
        settings: see `saved_quantization`.
        auto_class: what the base is loaded as, default `AutoModel`, its body.
        trainable: whether the adapter is trained further; the base never is.
        base: another place where the base model lies.
        dequantize: make the base's 4-bit weights wide again, in its dtype.
        load_kwargs: `revision` (of the adapter), `dtype`, …; a `quantization_config`, None included, wins over the
            saved one.

    Raises:
        MissingFileError: the base model is not where it was.
        ModelFileError: torn or incomplete files, or an adapter of another model.
    """
    from transformers import AutoModel

    config = saved_config(path, **load_kwargs)
    weights = hub_file(path, WEIGHTS, **load_kwargs)
    if weights is None:
        raise ModelFileError(f"{path} has an {CONFIG} but no {WEIGHTS}: save the adapter as safetensors")
    check_safetensors(weights)
    if "quantization_config" not in load_kwargs:
        load_kwargs["quantization_config"] = saved_quantization(path, settings, **load_kwargs)
    options = {key: value for key, value in load_kwargs.items() if key != "revision"}
    if options["quantization_config"] is None:
        del options["quantization_config"]
    if base is None and config.get("revision"):
        options["revision"] = config["revision"]
    where = base or config["base_model_name_or_path"]
    if base is not None and is_saved_at(base):
        raise ModelFileError(f"{base} is an adapter itself: name the whole model that {path} stands on")
    try:
        body = load_pretrained(auto_class or AutoModel, where, optional=("pooler",), **options)
    except MissingFileError as error:
        if base is not None:  # the user named it
            raise
        raise MissingFileError(
            f"{error}: the adapter {path} stands on it; correct base_model_name_or_path in its {CONFIG}"
        ) from error
    if dequantize:
        with quiet():
            body = body.dequantize()
        body.is_loaded_in_4bit = False  # transformers 5.19 forgets to say so
    keep_unpacked(body)
    return _with_adapter(body, path, weights, trainable=trainable)


def put_on(body: nn.Module, config: Any, tensors: dict[str, Tensor], path: str | Path) -> nn.Module:
    """The peft model of an adapter on `body`, with its weights.

    Raises:
        ModelFileError: an adapter of another model, or an incomplete one.
    """
    import torch
    from peft import get_peft_model

    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), quiet():
            model = get_peft_model(body, config)
    except Exception as error:
        raise ModelFileError(f"adapter {path} cannot be loaded: {reason_of(error)}") from error
    load_weights(model, path, tensors)
    return model.eval()


def peft_config(path: str | Path, weights: Path) -> Any:
    """PEFT's own reading of the adapter's configuration.

    Raises:
        ModelFileError: PEFT does not take it.
    """
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(local_folder(path) or weights.parent))
    except Exception as error:
        raise ModelFileError(f"adapter {path} cannot be loaded: {reason_of(error)}") from error


def load_weights(model: nn.Module, path: str | Path, tensors: dict[str, Tensor] | None = None) -> None:
    """Take over the weights of the adapter saved at `path`, one like `model`'s own.

    Args:
        tensors: the weights, where they are read already.

    Raises:
        ModelFileError: torn files, or an adapter of another shape.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if tensors is None:
        check_safetensors(Path(path) / WEIGHTS)
        tensors, base = load_file(Path(path) / WEIGHTS), base_of(model)
        if base.get_output_embeddings() is None:
            tensors = in_the_body(tensors, base)
    try:
        found = set_peft_model_state_dict(model, tensors)
    except Exception as error:
        raise ModelFileError(f"adapter {path} cannot be loaded: {reason_of(error)}") from error
    own = dict(model.named_parameters(remove_duplicate=False))
    given = {id(own[key]) for key in own.keys() - set(found.missing_keys)}  # tied ones are saved once
    wanted = (key for key in found.missing_keys if ".default." in key or key.endswith(".default"))
    lost = [key for key in wanted if id(own.get(key)) not in given]
    for kind, keys in (("has no weights for", lost), ("has weights that the model has no place for,", [*found[1]])):
        if keys:
            raise ModelFileError(f"adapter {path} {kind} {keys[0]}: it is incomplete, or made for another model")


def _with_adapter(body: nn.Module, path: str | Path, weights: Path, *, trainable: bool) -> nn.Module:
    from safetensors.torch import load_file

    tensors, config = load_file(weights), peft_config(path, weights)
    has_head = body.get_output_embeddings() is not None
    config.inference_mode, config.task_type = not trainable, "CAUSAL_LM" if has_head else None
    if not has_head:
        tensors = _of_the_body(config, tensors, body)
    return put_on(body, config, tensors, path)


def without_classifier(tensors: dict[str, Tensor], config: Any = None) -> dict[str, Tensor]:
    """The tensors of a body's adapter without the head that transformers' classifier finds there; `config` alike."""
    if config is not None:
        config.task_type = None
        if getattr(config, "modules_to_save", None):
            config.modules_to_save = [name for name in config.modules_to_save if f"{name}." not in HEADS] or None
    return {key: value for key, value in tensors.items() if not key.removeprefix(PEFT_ROOT).startswith(HEADS)}


def in_the_body(tensors: dict[str, Tensor], body: nn.Module, config: Any = None) -> dict[str, Tensor]:
    """The tensors by their names in the body alone, without those of any head; `config` without a classifier's."""
    prefix = f"{body.base_model_prefix}."
    inner = ((key.removeprefix(PEFT_ROOT), value) for key, value in without_classifier(tensors, config).items())
    return {PEFT_ROOT + key.removeprefix(prefix): value for key, value in inner if not key.startswith(f"{HEAD}.")}


def _of_the_body(config: Any, tensors: dict[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """`in_the_body`; `config` is changed alike."""
    prefix, names = f"{body.base_model_prefix}.", getattr(config, "target_modules", None)
    if not isinstance(names, str | None):  # names of modules, or their paths
        config.target_modules = {name.removeprefix(prefix) for name in names if name != HEAD}
    config.modules_to_save = [name for name in getattr(config, "modules_to_save", None) or () if name != HEAD] or None
    config.ensure_weight_tying = False
    if isinstance(tokens := getattr(config, "trainable_token_indices", None), dict):
        config.trainable_token_indices = {name: ids for name, ids in tokens.items() if name != HEAD} or None
    return in_the_body(tensors, body, config)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, bool | int | float | str | list | None) else str(value)
        for name, value in values.items()
    }
