"""Hugging Face models from a folder or the hub: safetensors only, complete, and with clear errors.

Departs from a bare `from_pretrained` in seven ways: every rank loads every model whole, whatever a launcher says of
FSDP's loading, since not all of them are sharded; a torn folder is named before loading; weights that are missing are
an error, not a warning and a random tensor; dropout is what the caller says, not what the pretraining config says; the
embedding of the pad token learns like any other (`padding_idx` would freeze `<|endoftext|>`, which separates
documents in Qwen's pretraining), and a pad id that is no token's is none; and weights that are quantised on the way
leave no mapped file behind. Whatever the libraries below raise at a strange config becomes one sentence.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.runtime.errors import MissingFileError, reason_of
from reward.errors import ModelFileError, VocabularyError
from reward.folder import check_model_folder, local_folder

logger = logging.getLogger(__name__)
HUB_OPTIONS = ("revision", "trust_remote_code", "token", "cache_dir", "local_files_only")
OUTPUT_LAYERS = ("lm_head.", "cls.predictions.")  # over the vocabulary: no score is read from them
BATCH_ROPES = ("longrope", "dynamic")


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
    auto_class: Any,
    path: str | Path,
    *,
    attention_dropout: float | None = 0.0,
    optional: tuple[str, ...] = (),
    exact: tuple[str, ...] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`auto_class.from_pretrained(path, **kwargs)` with the checks named above.

    Args:
        auto_class: `AutoModel`, `AutoModelForCausalLM`, ...
        path: folder or hub id.
        attention_dropout: see `set_dropout`; None keeps the config's rates.
        optional: weights whose name contains one of these may be missing.
        exact: weights that the model has no place for are an error too, but for those whose name begins so and those of
            an output layer over the vocabulary; None: they are left behind.
        kwargs: `dtype` (default: as saved), `revision`, `trust_remote_code`, `attn_implementation`, `device_map`, ...

    Raises:
        MissingFileError: neither a folder nor a model the hub gives.
        ModelFileError: torn or incomplete files.
    """
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
    config = kwargs.pop("config", None) or load_config(path, **kwargs)
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # or all ranks but the first would have random weights
    try:
        _drop_foreign_pad(config, path)
        if attention_dropout is not None:
            set_dropout(config, attention_dropout)
        wide = kwargs.get("quantization_config") is None
        with quiet(), nullcontext() if wide else read_by_tensor():
            model, info = auto_class.from_pretrained(
                where, config=config, use_safetensors=True, output_loading_info=True, **kwargs
            )
        free_pad_embedding(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a config can make any line of the libraries below fail
        raise _explain(error, f"model {path}", local=folder is not None) from error
    _check_weights(model, info, path, optional, exact)
    _warn_of_rope(config, path)
    return model


def load_config(path: str | Path, **kwargs: Any) -> Any:
    """The transformers config of a folder or hub id; of `kwargs` the hub options are used, and `num_labels`.

    Raises:
        MissingFileError, ModelFileError: as `load_pretrained`.
    """
    from transformers import AutoConfig

    folder = local_folder(path)
    labels = {key: kwargs[key] for key in ("num_labels",) if key in kwargs}
    try:
        return AutoConfig.from_pretrained(str(folder or path), **_hub_options(kwargs), **labels)
    except Exception as error:
        raise _explain(error, f"model {path}", local=folder is not None) from error


def _drop_foreign_pad(config: Any, path: str | Path) -> None:
    """Take a pad id out of the config that is no token of the model's: -1, or one past the last."""
    text = config.get_text_config()
    pad, vocabulary = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(vocabulary, int) and not 0 <= pad < vocabulary:
        logger.warning(
            "%s: pad_token_id %d is none of its %d tokens: it is loaded without a pad token", path, pad, vocabulary
        )
        for part in (config, text):
            part.pad_token_id = None


def _check_weights(
    model: nn.Module, info: dict[str, Any], path: str | Path, optional: tuple[str, ...], exact: tuple[str, ...] | None
) -> None:
    missing = sorted(key for key in info["missing_keys"] if not any(word in key for word in optional))
    if missing:
        raise ModelFileError(
            f"{path} lacks {len(missing)} weights of {type(model).__name__}, the first {missing[0]}: "
            "it is another kind of model than is asked for here, or incomplete"
        )
    allowed = ("",) if exact is None else (*OUTPUT_LAYERS, *exact)
    unexpected = sorted(key for key in info["unexpected_keys"] if not key.startswith(allowed))
    if unexpected:
        raise ModelFileError(
            f"{path} holds {len(unexpected)} weights that {type(model).__name__} has no place for, the first "
            f"{unexpected[0]}: without them it would not score as it was trained to"
        )


def _warn_of_rope(config: Any, path: str | Path) -> None:
    """Scaled rotary embeddings that look at the longest row of the batch."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    layers = [one for one in parameters.values() if isinstance(one, dict)] if isinstance(parameters, dict) else []
    for one in [parameters, *layers]:
        kind = one.get("rope_type", one.get("type")) if isinstance(one, dict) else None
        if kind in BATCH_ROPES:
            original = (
                one.get("original_max_position_embeddings")
                or getattr(text, "original_max_position_embeddings", None)
                or getattr(text, "max_position_embeddings", None)
            )
            logger.warning(
                "%s: its rotary embedding (%s) changes for a whole batch when one row is longer than %s tokens, so "
                "scores and log-probabilities would depend on the batch: keep every length below that",
                path,
                kind,
                original,
            )
            return


def check_vocabulary(model: nn.Module, tokenizer: Any, path: str | Path) -> None:
    """See to it that the model at `path` can read every token of the tokenizer.

    Raises:
        VocabularyError: it has fewer token embeddings.
    """
    if problem := vocabulary_problem(model, tokenizer):
        raise VocabularyError(f"the model at {path} {problem}")


def vocabulary_problem(model: Any, tokenizer: Any) -> str | None:
    """Which token of the tokenizer the model has no embedding for, in words; None where it has all."""
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    beyond = [token for token, id_ in vocabulary.items() if id_ >= rows]
    if beyond:
        first = min(beyond, key=vocabulary.__getitem__)
        return (
            f"has {rows} token embeddings, fewer than the {max(vocabulary.values()) + 1} tokens of "
            f"its tokenizer ({first!r} is token {vocabulary[first]}): take the tokenizer that belongs to it, or give "
            "it embeddings for all of them (model.resize_token_embeddings)"
        )
    return None


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
    except Exception as error:
        raise _explain(error, f"model {path}", local=False) from error
    return Path(found) if found else None


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key in HUB_OPTIONS}


def _explain(error: Exception, what: str, *, local: bool, made: str = "its configuration makes no model") -> Exception:
    reason = reason_of(error)
    if "`ignore_mismatched_sizes`" in str(error):  # beside a table on the terminal
        return ModelFileError(
            f"{what} cannot be loaded: its weights have other shapes than its config.json says (hidden_size, "
            "vocab_size, …): the two files belong to different models, copy both again"
        )
    if isinstance(error, ValueError) and "does not support an attention implementation" in str(error):
        return ModelFileError(
            f"{what} has no such attention in transformers ({reason.partition(' yet')[0]}): set "
            "model.attn_implementation=eager"
        )
    if "trust_remote_code" in str(error):
        return ModelFileError(
            f"{what} brings its own code: set trust_remote_code to true if you trust it, else take another"
        )
    if not local and isinstance(error, OSError):
        return MissingFileError(f"{what} is neither a folder here nor a model that the hub gives ({reason})")
    if isinstance(error, OSError | ValueError | RuntimeError | ImportError):  # whose words stand by themselves
        return ModelFileError(f"{what} cannot be loaded: {reason}")
    return ModelFileError(f"{what} cannot be loaded: {made} ({type(error).__name__}: {reason})")


def saved_tokenizer(path: str | Path, **kwargs: Any) -> Any:
    """The tokenizer saved beside a model, as it is; of `kwargs` only the hub options are used.

    `align.load_tokenizer` has it speak ChatML.

    Raises:
        MissingFileError: no such folder, or it holds no tokenizer.
        ModelFileError: its files make none.
    """
    from transformers import AutoTokenizer

    folder = local_folder(path)
    if folder is not None and not any(folder.glob("*token*")) and not any(folder.glob("*vocab*")):
        raise MissingFileError(
            f"{path} holds no tokenizer (tokenizer.json): save the model's tokenizer into the same folder"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder or path), **{"trust_remote_code": False, **_hub_options(kwargs)}
        )
    except Exception as error:  # the Rust parser raises bare Exception on a torn tokenizer.json
        raise _explain(
            error, f"the tokenizer of {path}", local=folder is not None, made="its files make none"
        ) from error
    _check_max_length(tokenizer, path)
    return tokenizer


def _check_max_length(tokenizer: Any, path: str | Path) -> None:
    """Raises ModelFileError where the tokenizer's `model_max_length` is no length."""
    room = tokenizer.model_max_length
    if not isinstance(room, int | float) or room <= 0:
        raise ModelFileError(f"{path}: model_max_length in tokenizer_config.json must be a number above 0, is {room!r}")
