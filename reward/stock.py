"""What transformers' own sequence classifier (`AutoModelForSequenceClassification`) finds in the folder of a head.

Where that class reads its score as our head does (at the last token, through one linear unit without bias), the folder
is that class's own: its names of the weights, one label, the head as `score.weight`. Everywhere else a weight of a size
that fits nothing stands under the name of the class's head, so that it refuses the folder: it would draw a head at
random, with no more than a warning.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward.folder import WEIGHTS, WEIGHTS_INDEX, read_json

SCORE = "score.weight"
PEFT_ROOT = "base_model.model."  # before every name in an adapter's file
HEADS = ("score.", "classifier.")  # what such classes call theirs


def classifier_config(config: Any, settings: dict[str, Any]) -> Any:
    """A copy of a body's config for a classifier of one label, with further values."""
    config = copy.deepcopy(config)
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}  # this is num_labels 1
    config.problem_type = "regression"  # servers that put a sigmoid on one label leave it off
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def empty_classifier(config: Any, dtype: torch.dtype) -> nn.Module | None:
    """The classifier of a config without memory for its weights, None where transformers has none."""
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config).to(dtype)
    except Exception:  # no such class, or one that needs more than a text model has
        return None


def reads_last_token(classifier: nn.Module | None, head_weight_1d: Tensor) -> bool:
    """Whether the classifier's score is our head's: the last token's state through one linear unit without bias."""
    score = getattr(classifier, "score", None)
    return isinstance(score, nn.Linear) and score.bias is None and score.weight.shape == head_weight_1d.shape


def save_as_classifier(classifier: nn.Module, folder: Path, body: dict[str, Tensor], head_weight_1d: Tensor) -> None:
    """Write the classifier's folder, with an index of its weights, by which they are told from other files.

    Args:
        classifier: see `empty_classifier`.
        body: the backbone's state.
        head_weight_1d: (1, d), kept in float32.
    """
    from safetensors import safe_open

    prefix = f"{classifier.base_model_prefix}."
    state = {prefix + name: tensor for name, tensor in body.items()} | {SCORE: head_weight_1d}
    classifier.save_pretrained(folder, state_dict=state)
    if not (folder / WEIGHTS_INDEX).is_file():  # without one servers read every safetensors file, our head's too
        with safe_open(folder / WEIGHTS, "pt") as file:
            index = {"metadata": {}, "weight_map": dict.fromkeys(sorted(file.keys()), WEIGHTS)}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def add_to_adapter(folder: Path, classifier: nn.Module | None, head_weight_1d: Tensor | None) -> None:
    """Make of the folder of a body's adapter one of the classifier, as PEFT writes those: the names that the body's
    parts have in the classifier, its head among `modules_to_save`, and the task.

    Args:
        head_weight_1d: None: the class reads another head, and is to refuse this one; names stay those of the body.
    """
    from safetensors.torch import load_file, save_file

    state = refusal(classifier) if head_weight_1d is None else {SCORE: head_weight_1d.detach().float().cpu()}
    if not state:
        return
    (name,) = state
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    config, tensors = read_json(config_file), load_file(weights_file)
    if head_weight_1d is not None:
        prefix = f"{classifier.base_model_prefix}."
        _of_the_classifier(config, prefix)
        tensors = {PEFT_ROOT + prefix + key.removeprefix(PEFT_ROOT): value for key, value in tensors.items()}
    if isinstance(config.get("target_modules"), list):
        config["target_modules"].sort()  # PEFT keeps a set, whose order is another in every process
    config["modules_to_save"] = [*(config.get("modules_to_save") or ()), name.partition(".")[0]]
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    save_file(tensors | {PEFT_ROOT + name: state[name].contiguous()}, weights_file, metadata={"format": "pt"})


def _of_the_classifier(config: dict[str, Any], prefix: str) -> None:
    """Make the configuration of a body's adapter that of the classifier's, which the body takes too."""
    config.update(task_type="SEQ_CLS", auto_mapping=None)
    anywhere, targets = f"(?:{re.escape(prefix)})?", config.get("target_modules")
    if isinstance(targets, str) and not targets.startswith(anywhere):  # a pattern of whole names
        config["target_modules"] = f"{anywhere}(?:{targets})"


def refusal(classifier: nn.Module | None) -> dict[str, Tensor]:
    """What a body's state gets on top, so that the classifier refuses it."""
    if classifier is None:
        return {}
    heads = [name for name, _ in classifier.named_parameters() if name.startswith(HEADS)]
    return {name: torch.zeros(0) for name in heads[:1]}
