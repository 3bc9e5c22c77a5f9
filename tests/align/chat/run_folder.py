"""A run's folder as a chain leaves it, of tiny random models: policies of sft and ppo, a reward model of rm."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from align.models.load import load_saved
from data_formats.chat_format import RAW_TEMPLATE
from data_formats.chatml import CHAT_TEMPLATE
from reward.model import RewardModel
from tests.tiny_models import byte_tokenizer, save_causal_lm

SHAPE = {"max_position_embeddings": 512, "hidden_size": 64}  # heads of 32, which vLLM's CPU kernels know


def finished(run: Path, stage: str) -> Path:
    """Where the model of a finished stage lies."""
    folder = run / stage
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("recipe.yaml", "summary.json"):
        (folder / name).write_text("{}")
    return folder / "model"


def write_run(run: Path) -> Path:
    """sft, rm and ppo, the byte tokenizer's ChatML, 512 positions."""
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    for seed, stage in enumerate(("sft", "ppo")):
        tokenizer.save_pretrained(save_causal_lm(finished(run, stage), seed=seed, **SHAPE))
    model = RewardModel.from_backbone(run / "sft/model")
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(finished(run, "rm"))
    tokenizer.save_pretrained(run / "rm/model")
    return run


def write_adapter(folder: Path, base: Path) -> Path:
    """A LoRA adapter on `base` that changes it."""
    import peft

    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    tokenizer = byte_tokenizer(chat_template=CHAT_TEMPLATE)
    peft.get_peft_model(load_saved(base, tokenizer), config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_without_turns(folder: Path) -> Path:
    """A model that was trained with `template: none`."""
    save_causal_lm(folder, **SHAPE)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    said = {"chat_format": {"template": "none", "stops": ["<|im_end|>"]}, "chat_template": RAW_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | said))
    return folder
