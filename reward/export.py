"""A reward model as other software loads it: a plain `…ForSequenceClassification` with one label.

Such a class reads its score at the last token that is not padding, through one linear unit without bias, which is what
the end-token head does on inputs that end at `<|im_end|>`: the raw scores are the same. Shift and scale are no part of
that class; they stand in its config (`reward_shift`, `reward_scale`) and in the model card, and whoever wants
calibrated scores applies them. The tokenizer that goes along has a chat template that ends at `<|im_end|>`, without the
newline that ChatML puts there, so that `apply_chat_template` gives what the score is read from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.runtime.card import CARD, inherited, write_card
from align.runtime.errors import AlignError
from align.runtime.files import require_new
from align.runtime.paths import typed_path
from data_formats.chat_format import chat_format
from reward.card import ABOUT, TAGS, TRAINED, classifier_sections
from reward.errors import ModelFileError
from reward.folder import read_json, staged
from reward.loading import check_vocabulary, hub_file, quiet, saved_tokenizer
from reward.model import RewardModel
from reward.stock import classifier_config, empty_classifier, reads_last_token

POOLING = "end_token"


class ExportError(AlignError, ValueError):
    """A reward model that a plain sequence classifier cannot stand for."""


def export_classifier(model_dir: str | Path, out_dir: str | Path, *, dtype: str = "auto", **load_kwargs: Any) -> Path:
    """Write the reward model at `model_dir` to `out_dir` as a classifier, with tokenizer and model card.

    An adapter is merged into its base model first.

    Args:
        model_dir: folder or hub id of a `RewardModel` with the end-token head.
        out_dir: a folder that does not exist yet, or is empty.
        dtype: of the weights, the head's included: `auto` (the backbone's), `float32`, `bfloat16`, `float16`. A head
            rounded to 16 bits scores a little differently from ours, which is kept in float32.
        load_kwargs: `revision`, `trust_remote_code`, … as of `from_pretrained`.

    Returns:
        `out_dir`.

    Raises:
        ExportError: another pooling, a quantized backbone, or an architecture without such a classifier.
        MissingFileError, ModelFileError: nothing there, torn, no reward model.
        StorageError: `out_dir` holds something, or cannot be written.
    """
    out_dir = typed_path(out_dir)
    require_new(out_dir, "export")
    _require_end_token(model_dir, load_kwargs)
    model = RewardModel.from_pretrained(model_dir, dtype=dtype, **load_kwargs)
    tokenizer = saved_tokenizer(model_dir, **load_kwargs)
    check_vocabulary(model, tokenizer, model_dir)
    settings = model.settings()
    exported = as_classifier(
        _merged(model.backbone, model_dir),
        model.head.weight,
        _prepared(tokenizer, model_dir),
        {"reward_shift": float(settings["shift"]), "reward_scale": float(settings.get("scale", 1.0))},
    )
    with quiet(), staged(out_dir) as folder:
        exported.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        metadata, trained = inherited(hub_file(model_dir, CARD, **load_kwargs), *TRAINED)
        made = f"It is a plain `{type(exported).__name__}` with one label, made by `align export-reward`."
        use = classifier_sections(
            tokenizer,
            shift=exported.config.reward_shift,
            scale=exported.config.reward_scale,
            pad_id=exported.config.pad_token_id,
            dtype=str(exported.dtype).removeprefix("torch."),
        )
        metadata |= {"library_name": "transformers", "pipeline_tag": "text-classification", "tags": TAGS}
        write_card(folder, out_dir.name, f"{ABOUT} {made}", use | trained, metadata)
    return out_dir


def as_classifier(
    backbone: nn.Module, head_weight_1d: torch.Tensor, tokenizer: Any, settings: dict[str, float]
) -> nn.Module:
    """The transformers classifier with the backbone's weights and the head's weight (1, d) as its `score`.

    Args:
        tokenizer: with the pad token that the classifier tells padding by.
        settings: further values for its config.

    Raises:
        ExportError: the architecture has no classifier that reads the last token through a linear unit alone.
    """
    from transformers import AutoModelForSequenceClassification

    config = classifier_config(backbone.config, settings | {"pad_token_id": tokenizer.pad_token_id})
    if not reads_last_token(empty_classifier(config, backbone.dtype), head_weight_1d):
        raise ExportError(
            f"the architecture {type(backbone).__name__} has no sequence classifier in transformers that reads the "
            "last token through one linear unit, so its reward model cannot be exported"
        )
    exported = AutoModelForSequenceClassification.from_config(config).to(backbone.dtype)
    exported.base_model.load_state_dict(backbone.state_dict())
    exported.score.weight.data.copy_(head_weight_1d)
    return exported.eval()


def _require_end_token(model_dir: str | Path, load_kwargs: dict[str, Any]) -> None:
    file = hub_file(model_dir, RewardModel.settings_file, **load_kwargs)
    if file is None:
        raise ModelFileError(f"{model_dir} has no {RewardModel.settings_file}: it is no reward model of this project")
    pooling = read_json(file).get("pooling")
    if pooling != POOLING:
        raise ExportError(
            f"{model_dir} pools by '{pooling}': a plain sequence classifier reads its score at the last token alone, "
            f"so only '{POOLING}' can be exported; train one with pooling: {POOLING}, or serve this one as it is"
        )


def _merged(backbone: nn.Module, model_dir: str | Path) -> nn.Module:
    if getattr(backbone, "is_quantized", False):
        raise ExportError(
            f"{model_dir} has a quantized backbone, into which no adapter can be merged exactly: make a whole "
            "model of it first, align merge with --dequantize or --base"
        )
    return backbone.merge_and_unload() if hasattr(backbone, "merge_and_unload") else backbone


def _prepared(tokenizer: Any, model_dir: str | Path) -> Any:
    """With the template above, and a pad token that is not the reply's end token, which would be taken for padding."""
    speaker = chat_format(tokenizer)
    if speaker.padding is None:
        raise ExportError(
            f"{model_dir}: its tokenizer has no special token but {speaker.stops[0]}, which ends replies: a plain "
            "sequence classifier, which tells padding by its token, would take every end for padding"
        )
    tokenizer.pad_token = speaker.padding
    tokenizer.chat_template = speaker.scoring_template
    tokenizer.padding_side = "right"
    return tokenizer
