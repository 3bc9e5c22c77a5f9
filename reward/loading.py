"""Hugging Face models from a folder or the hub: safetensors only, complete, and with clear errors.

Departs from a bare `from_pretrained` in five ways: a torn folder is named before loading; weights that are missing are
an error, not a warning and a random tensor; dropout is what the caller says, not what the pretraining config says; the
embedding of the pad token learns like any other (`padding_idx` would freeze `<|endoftext|>`, which separates
documents in Qwen's pretraining); and weights that are quantised on the way leave no mapped file behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_formats.errors import MissingFileError
from reward.errors import ModelFileError
from reward.folder import check_model_folder, local_folder

HUB_OPTIONS = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only")


def set_dropout(config: Any, attention: float) -> None:
    """Set every attention dropout rate of a transformers config to `attention` and all others to 0, in place."""
    for name, value in list(config.to_dict().items()):
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, attention if "att" in name else 0.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars, load report and notes: what is wrong with a model is an error here, not a table."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    loaders = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "integrations.bitsandbytes")]
    transformers_logging.disable_progress_bar()
    for loader in loaders:
        loader.addFilter(_no_report)
    try:
        yield
    finally:
        for loader in loaders:
            loader.removeFilter(_no_report)
        if bars:
            transformers_logging.enable_progress_bar()


def _no_report(record: logging.LogRecord) -> bool:
    return not any(words in str(record.msg) for words in ("LOAD REPORT", "modules are dequantized in"))


@contextmanager
def read_by_tensor() -> Iterator[None]:
    """Let transformers read each tensor of a safetensors file when its turn comes, and map no file into memory.

    What is quantised while it is loaded needs its wide weights for a moment alone; of a mapped file every page that was
    read stays in the process for as long as one tensor of it lives (the embedding, which is not quantised).
    """
    from transformers import modeling_utils

    mapping = modeling_utils.safe_open

    def reading(*args: Any, **kwargs: Any) -> Any:
        return mapping(*args, **{**kwargs, "backend": "pread"})

    modeling_utils.safe_open = reading  # transformers 5.19 asks for it on Windows alone, and has no option
    try:
        yield
    finally:
        modeling_utils.safe_open = mapping


def load_pretrained(
    auto_class: Any, path: str | Path, *, attention_dropout: float | None = 0.0, optional: str = "pooler", **kwargs: Any
) -> nn.Module:
    """`auto_class.from_pretrained(path, **kwargs)` with the checks named above.

    Args:
        auto_class: `AutoModel`, `AutoModelForCausalLM`, ...
        path: folder or hub id.
        attention_dropout: see `set_dropout`; None keeps the config's rates.
        optional: weights whose name contains this may be missing.
        kwargs: `dtype` (default: as saved), `revision`, `trust_remote_code`, `attn_implementation`, `device_map`, ...

    Raises:
        MissingFileError: neither a folder nor a model the hub gives.
        ModelFileError: torn or incomplete files.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    folder = local_folder(path)
    if folder is not None:
        check_model_folder(folder)
    kwargs.setdefault("dtype", "auto")
    kwargs.setdefault("trust_remote_code", False)  # None would ask on the terminal
    where = str(folder or path)
    # transformers' look for an adapter forgets these two, and then asks the hub although told not to
    kwargs.setdefault(
        "adapter_kwargs", {key: kwargs[key] for key in ("cache_dir", "local_files_only") if key in kwargs}
    )
    try:
        config = kwargs.pop("config", None) or AutoConfig.from_pretrained(where, **_hub_options(kwargs))
        if attention_dropout is not None:
            set_dropout(config, attention_dropout)
        wide = kwargs.get("quantization_config") is None
        with quiet(), nullcontext() if wide else read_by_tensor():
            model, info = auto_class.from_pretrained(
                where, config=config, use_safetensors=True, output_loading_info=True, **kwargs
            )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _explain(error, path, local=folder is not None) from error
    missing = sorted(key for key in info["missing_keys"] if optional not in key)
    if missing:
        raise ModelFileError(
            f"{path} lacks {len(missing)} weights of {type(model).__name__}, the first {missing[0]}: "
            "it is another kind of model than is asked for here, or incomplete"
        )
    free_pad_embedding(model)
    return model


def free_pad_embedding(model: Any) -> None:
    """Let the pad token's embedding learn: masks come from lengths here, and the pad token may be a real one."""
    embedding = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) is not None:
        embedding.padding_idx = None


def hub_file(path: str | Path, name: str, **options: Any) -> Path | None:
    """A file of a model folder or hub repository, None where that has no such file."""
    from transformers.utils import cached_file

    folder = local_folder(path)
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    options = {key: value for key, value in options.items() if key in HUB_OPTIONS and key != "trust_remote_code"}
    try:
        found = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False, **options)
    except (OSError, ValueError) as error:
        raise _explain(error, path, local=False) from error
    return Path(found) if found else None


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}


def _explain(error: Exception, path: str | Path, *, local: bool) -> Exception:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        return ModelFileError(
            f"model {path} brings its own code: set trust_remote_code to true if you trust it, else take another"
        )
    if not local and isinstance(error, OSError):
        return MissingFileError(f"model {path} is neither a folder here nor a model that the hub gives ({reason})")
    return ModelFileError(f"model {path} cannot be loaded: {reason}")


def load_tokenizer(path: str | Path, **kwargs: Any) -> Any:
    """The tokenizer saved beside a model; of `kwargs` only the hub options are used.

    Raises:
        MissingFileError, ModelFileError: as `load_pretrained`.
    """
    from transformers import AutoTokenizer

    folder = local_folder(path)
    if folder is not None and not any(folder.glob("*token*")) and not any(folder.glob("*vocab*")):
        raise ModelFileError(
            f"{path} has no tokenizer (tokenizer.json): save the model's tokenizer into the same folder"
        )
    try:
        return AutoTokenizer.from_pretrained(
            str(folder or path), **{"trust_remote_code": False, **_hub_options(kwargs)}
        )
    except Exception as error:  # the Rust parser raises bare Exception on a torn tokenizer.json
        raise _explain(error, path, local=folder is not None) from error
