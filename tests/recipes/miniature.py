"""recipes/qwen_rlhf.yaml in miniature: a random Qwen2 of width 16 in the model's place, files under the recipe's names.

Only sizes are overridden (rows, steps and their warm-ups, lengths of replies); every other value is the recipe's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_formats.chatml import CHAT_TEMPLATE
from tests.tiny_models import byte_tokenizer, save_causal_lm

ANIMALS = ("cat", "dog", "hen", "cow", "fox", "owl", "ant", "bee", "pig", "rat", "emu", "eel")
SOUNDS = ("meows", "barks", "clucks", "moos")
SIZES = {
    "sft": {"max_steps": 3, "batch_size": 4, "save_steps": 2, "logging_steps": 1, "eval_num_replies": 4},
    "pmp": {"batch_size": 8, "save_steps": 2, "logging_steps": 1},
    "rm": {"batch_size": 8, "save_steps": 2, "logging_steps": 1},
    "ppo": {"num_iterations": 3, "rollout_batch_size": 4, "num_mini_batches": 2, "critic_warmup_steps": 2}
    | {"save_steps": 2, "ptx_ratio": 1, "ptx_max_length": 64},
}
OVERRIDES = [
    *(f"{stage}.{key}={value}" for stage, sizes in SIZES.items() for key, value in sizes.items()),
    "sft.warmup_steps=1",
    "ppo.policy.warmup_steps=1",
    "sft.max_completion_length=8",
    "ppo.rollout.max_completion_length=8",
    "ppo.evaluation.num_samples=2",
    "ppo.evaluation.limit=3",
]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_model(folder: Path) -> Path:
    """A base model as the hub would give it: Qwen2, safetensors, a tokenizer with ChatML's tokens and template."""
    save_causal_lm(folder, max_position_embeddings=2048)
    byte_tokenizer(chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder


def write_data(root: Path) -> Path:
    """The eight files that the recipe names, each in a shape of its own that the readers know."""
    facts = [(animal, sound) for animal in ANIMALS for sound in SOUNDS]

    def turns(animal: str, sound: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"The {animal}?"}, {"role": "assistant", "content": f"It {sound}."}]

    def pair(animal: str, sound: str) -> dict[str, Any]:
        return {"prompt": turns(animal, sound)[:1], "chosen": f"It {sound}.", "rejected": "猫。"}

    _write(root / "sft/train.jsonl", [{"messages": turns(*fact)} for fact in facts[:40]])
    alpaca = [{"instruction": f"A {animal}!", "input": "", "output": f"It {sound}."} for animal, sound in facts[40:]]
    upvoted = [{"question": f"{animal}?", "response_j": sound, "response_k": "no"} for animal, sound in facts[:24]]
    _write(root / "sft/heldout.jsonl", alpaca)
    _write(root / "pmp/comparisons.jsonl", upvoted)
    _write(root / "rm/comparisons.jsonl", [pair(*fact) for fact in facts[:24]])
    _write(root / "rm/heldout.jsonl", [pair(*fact) | {"category": fact[1]} for fact in facts[24:36]])
    _write(root / "ppo/prompts.jsonl", [{"prompt": f"The {animal}?"} for animal in ANIMALS])
    _write(root / "ppo/eval_prompts.jsonl", [{"prompt": f"And {sound}?", "category": "sound"} for sound in SOUNDS])
    _write(root / "text/documents.jsonl", [{"text": f"The {animal} {sound} all day. " * 3} for animal, sound in facts])
    return root


SFT_SIZES = ["max_steps=4", "warmup_steps=1", "batch_size=4", "micro_batch_size=2", "logging_steps=1", "eval_steps=2"]
SFT_SIZES += ["save_steps=2", "eval_num_replies=4", "max_completion_length=8"]


def write_conversations(root: Path) -> Path:
    """The files of the SFT recipes: conversations of one to three exchanges, with categories, in two shapes."""
    facts = [(animal, sound) for animal in ANIMALS for sound in SOUNDS]

    def talk(number: int) -> list[dict[str, str]]:
        chosen = [facts[(number + turn) % len(facts)] for turn in range(1 + number % 3)]
        return [
            {"from": side, "value": text}
            for animal, sound in chosen
            for side, text in (("human", f"The {animal}?"), ("gpt", f"It {sound}."))
        ]

    def messages(number: int) -> list[dict[str, str]]:
        roles = {"human": "user", "gpt": "assistant"}
        return [{"role": roles[turn["from"]], "content": turn["value"]} for turn in talk(number)]

    train = [{"messages": messages(number), "category": facts[number][1]} for number in range(36)]
    heldout = [{"messages": messages(number), "category": facts[number][1]} for number in range(36, 48)]
    shared = [{"conversations": talk(number)} for number in range(36)]
    for name, rows in {
        "train": train,
        "heldout": heldout,
        "maths": train,
        "maths_heldout": heldout,
        "conversations": shared,
        "conversations_heldout": heldout,
    }.items():
        _write(root / "sft" / f"{name}.jsonl", rows)
    return root


def rejection_arguments(folder: Path) -> list[str]:
    """As `arguments`, for the recipe of rejection sampling: the comparisons carry the grades that its margin needs."""
    words = arguments(folder)
    for name in ("comparisons", "heldout"):
        file = folder / "data" / "rm" / f"{name}.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        _write(file, [row | {"grade": 1 + at % 4} for at, row in enumerate(rows)])
    own = [word for word in words if not word.startswith(("pmp.", "ppo.policy.", "ppo.ptx", "sft.warmup"))]
    sizes = {"max_steps": 2, "batch_size": 4, "save_steps": 1, "logging_steps": 1, "num_rounds": 2}
    sizes |= {"rollout.num_generations": 4, "rollout.max_completion_length": 64, "evaluation.limit": 3}
    sizes |= {"evaluation.num_samples": 2}
    more = ["rm.warmup_steps=1", "ppo.critic_warmup_steps=0", "ppo.rollout.num_generations=2", "ppo.micro_batch_size=2"]
    return [*own, *more, *(f"rejection.{key}={value}" for key, value in sizes.items())]


def sft_arguments(folder: Path) -> list[str]:
    """As `arguments`, for the recipes that have an sft stage alone."""
    model, root = write_model(folder / "Qwen2-tiny"), write_conversations(folder / "data")
    sizes = [f"sft.{size}" for size in SFT_SIZES]
    return [f"model.path={model}", f"data_root={root}", f"output_dir={folder / 'run'}", *sizes]


def arguments(folder: Path) -> list[str]:
    """Writes model and data into `folder` and returns the `key=value` words that put them into the recipe."""
    model, root = write_model(folder / "Qwen2-tiny"), write_data(folder / "data")
    return [f"model.path={model}", f"data_root={root}", f"output_dir={folder / 'run'}", *OVERRIDES]
