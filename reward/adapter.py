"""Backbones behind a peft adapter (LoRA), over plain or 4-bit weights (bitsandbytes).

Saved are the adapter (`adapter_config.json`, `adapter_model.safetensors`) and, beside it, head and settings; the base
model is found again where it was (`base_model_name_or_path`), and quantised again where the settings say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reward.errors import ModelFileError
from reward.folder import check_safetensors, local_folder, read_json
from reward.loading import hub_file, load_pretrained

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def quantization_4bit(compute_dtype: Any = "bfloat16") -> Any:
    """NF4 with double quantisation (Dettmers et al. 2023, QLoRA), for `quantization_config=`."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
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


def is_adapter(backbone: nn.Module) -> bool:
    """Whether `backbone` is a peft model."""
    return hasattr(backbone, "peft_config")


def settings(backbone: nn.Module) -> dict[str, Any]:
    """What is needed to load the base again: how it is quantised; nothing for a plain one."""
    config = getattr(backbone.config, "quantization_config", None)
    if not is_adapter(backbone) or config is None:
        return {}
    return {"base_quantization": config if isinstance(config, dict) else _plain(config.to_dict())}


def save_body(backbone: nn.Module, folder: Path, state: dict[str, Tensor]) -> None:
    """Write the adapter alone where there is one, else the whole backbone."""
    if is_adapter(backbone):
        backbone.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    else:
        backbone.save_pretrained(folder, state_dict=state)


def load_body(path: str | Path, settings: dict[str, Any], **load_kwargs: Any) -> nn.Module:
    """The base model with the adapter on it.

    Raises:
        MissingFileError: the base model is not where it was.
        ModelFileError: torn or incomplete files.
    """
    from peft import PeftModel
    from transformers import AutoModel, BitsAndBytesConfig

    config = read_json(hub_file(path, CONFIG, **load_kwargs))
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelFileError(f"{path}/{CONFIG}: 'base_model_name_or_path' must name the base model, found {base!r}")
    folder = local_folder(path)
    if folder is not None:
        check_safetensors(folder / WEIGHTS)
    quantization = settings.get("base_quantization")
    if quantization is not None:
        load_kwargs.setdefault("quantization_config", BitsAndBytesConfig.from_dict(quantization))
    body = load_pretrained(AutoModel, base, **{k: v for k, v in load_kwargs.items() if k != "revision"})
    keep_unpacked(body)
    try:
        return PeftModel.from_pretrained(body, str(folder or path), is_trainable=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelFileError(f"adapter {path} cannot be loaded: {str(error).splitlines()[0]}") from error


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, bool | int | float | str | list | None) else str(value)
        for name, value in values.items()
    }
