"""What both sides of a benchmark are given: Qwen2 models of random weights, a tokenizer, prompts. Needs torch and
transformers alone."""

from __future__ import annotations

import random
import tempfile
from typing import Any

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PARTS = ["user", "assistant", "system", "\n"]
OF_A_PROMPT = 8  # tokens of a ChatML prompt that are not its words
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)  # ChatML, with the marks that tell transformers where the loss is


def shape(case: dict[str, Any]) -> Any:
    """The Qwen2 configuration of a case's `vocab`, `width` and `layers`."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=case["vocab"],
        hidden_size=case["width"],
        intermediate_size=case["width"] * 11 // 4,
        num_hidden_layers=case["layers"],
        num_attention_heads=max(2, case["width"] // 64),
        num_key_value_heads=max(1, case["width"] // 128),
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )


def make(kind: str, case: dict[str, Any], seed: int = 0, **changes: Any) -> Any:
    """A model of that class of transformers, float32, the same for a seed on all sides."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = shape(case)
    for name, value in changes.items():
        setattr(config, name, value)
    return getattr(transformers, kind)(config)


def tokenizer(vocab: int) -> Any:
    """A word a token: ChatML's control tokens and `w7`, `w8`, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = CONTROL + PARTS
    words += [f"w{at}" for at in range(len(words), vocab)]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=words[-1]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=CONTROL[2], pad_token=CONTROL[0], padding_side="left"
    )
    made.add_special_tokens({"additional_special_tokens": [CONTROL[1]]})
    made.chat_template = TEMPLATE
    return made


def trainer_arguments(rows: int, learning_rate: float) -> dict[str, Any]:
    """What the arguments of both sides' trainers have in common: `rows` a step, nothing saved or shown, and more epochs
    than the parent will ask for."""
    import torch

    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": rows,
        "num_train_epochs": 100_000,
        "learning_rate": learning_rate,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def words_of(count: int, vocab: int, rng: random.Random) -> str:
    """So many words of the vocabulary."""
    return " ".join(f"w{rng.randrange(len(CONTROL + PARTS), vocab)}" for _ in range(count))


def questions(case: dict[str, Any]) -> list[str]:
    """What the user says in `prompts` prompts of `shortest` to `longest` tokens, generation prompt included."""
    rng = random.Random(0)
    lengths = [rng.randint(case["shortest"], case["longest"]) - OF_A_PROMPT for _ in range(case["prompts"])]
    return [words_of(length, case["vocab"], rng) for length in lengths]


def prompt_ids(case: dict[str, Any]) -> list[list[int]]:
    """The same prompts as token ids."""
    names = tokenizer(case["vocab"])
    return [
        names(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        for question in questions(case)
    ]
