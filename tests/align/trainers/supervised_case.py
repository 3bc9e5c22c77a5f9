"""Rows, models and one optimizer step of the supervised trainers, shared by their tests (also run by several ranks)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM, TrainerCallback

from align.data.collate import CausalCollator, PairCollator, PreferenceCollator
from align.recipe.batch import BatchPlan
from align.recipe.fields import Source
from align.recipe.model_section import ModelSection
from align.recipe.supervised_sections import SupervisedSection
from align.trainers.arguments import training_arguments
from align.trainers.reward import RewardTrainer
from align.trainers.reward_groups import GroupCollator, GroupOptions, GroupRewardTrainer
from align.trainers.sft import SFTTrainer
from reward.model import RewardModel
from tests.tiny_models import byte_tokenizer, qwen2_config

PAD = 256
BATCH = 8
LM = 0.3


def sft_rows(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of 3 to 20 tokens, a prompt without loss and then a reply with it; the pad id occurs inside."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [rng.randrange(259) for _ in range(rng.randint(3, 20))]
        start = rng.randint(1, len(ids) - 1)
        rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return rows


def chat_rows(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Conversations of 1 to 4 turns, each with a prompt (no loss) and a reply (loss); the pad id occurs inside.

    The first turn with loss of some is numbered 2, as where the mask leaves turns out.
    """
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        row: dict[str, list[int]] = {"input_ids": [], "labels": [], "turns": []}
        first = 1 + (index % 3 == 0)
        for turn in range(first, first + rng.randint(1, 4)):
            prompt = [rng.randrange(259) for _ in range(rng.randint(1, 5))]
            reply = [rng.randrange(259) for _ in range(rng.randint(1, 6))]
            row["input_ids"] += prompt + reply
            row["labels"] += [-100] * len(prompt) + reply
            row["turns"] += [0] * len(prompt) + [turn] * len(reply)
        rows.append(row)
    return rows


def pair_rows(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Two sequences that share their beginning."""
    rng = random.Random(seed)

    def ids(shortest: int, longest: int) -> list[int]:
        return [rng.randrange(256) for _ in range(rng.randint(shortest, longest))]

    prompts = [ids(1, 8) for _ in range(count)]
    return [{"chosen_ids": [*p, *ids(1, 8), 258], "rejected_ids": [*p, *ids(1, 8), 258]} for p in prompts]


def preference_rows(count: int, seed: int = 0) -> list[dict[str, list[int]]]:
    """Two replies to a prompt, of which some tokens do not count, as between turns and at their ends."""
    rng = random.Random(seed)

    def reply() -> tuple[list[int], list[int]]:
        ids = [*(rng.randrange(259) for _ in range(rng.randint(1, 9))), 258]
        mask = [int(rng.random() < 0.8) for _ in ids]
        return ids, [1, *mask[1:]]

    rows = []
    for _ in range(count):
        (chosen, chosen_mask), (rejected, rejected_mask) = reply(), reply()
        prompt = [rng.randrange(259) for _ in range(rng.randint(1, 8))]
        sides = {"chosen_ids": chosen, "rejected_ids": rejected}
        masks = {"chosen_mask": chosen_mask, "rejected_mask": rejected_mask}
        rows.append({"prompt_ids": prompt, **sides, **masks})
    return rows


def group_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with 2 to 4 replies, ranked, the last two of some tied; margins of every size."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        prompt = [rng.randrange(256) for _ in range(rng.randint(1, 9))]
        k = 2 + index % 3
        replies = [[*(rng.randrange(256) for _ in range(rng.randint(1, 7))), 258] for _ in range(k)]
        pairs = [(k - 1 - a, k - 1 - b, 0.1 * a, 0.5 if b == 3 else 1.0) for a in range(k) for b in range(a + 1, k)]
        rows.append({"prompt_ids": prompt, "reply_ids": replies, "pairs": pairs})
    return rows


def group_options(share: bool) -> GroupOptions:
    """Every term at once."""
    return GroupOptions(label_smoothing=0.1, centering=0.02, lm_weight=LM, share_prompts=share, row_length=60)


def output_layer() -> torch.Tensor:
    return torch.randn(259, 16, generator=torch.Generator().manual_seed(2))


def causal_lm(dtype: torch.dtype = torch.float64, **changes: Any) -> Qwen2ForCausalLM:
    torch.manual_seed(7)
    return Qwen2ForCausalLM(qwen2_config(**changes)).to(dtype)


def reward_model() -> RewardModel:
    torch.manual_seed(7)
    return RewardModel(Qwen2ForCausalLM(qwen2_config()).model)


class Gradients(TrainerCallback):
    """Keeps the gradients of every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None})


def make_trainer(
    kind: str,
    folder: Path,
    rows: list[dict],
    *,
    micro: int,
    ranks: int = 1,
    heldout: Any = None,
    model: Any = None,
    trainer: dict[str, Any] | None = None,
    **keys: Any,
) -> Any:
    """An `sft`, `reward`, `groups` or `dpo` trainer of batches of 8 rows; `trainer` are its own options, `keys` are the
    section's."""
    options = {"learning_rate": 1e-3, "max_length": 64, "max_grad_norm": 1e9, "max_steps": 1, "eval_batch_size": 4}
    section = SupervisedSection(
        data=(Source(path="x"),), batch_size=BATCH, micro_batch_size=micro, **(options | {"logging_steps": 1} | keys)
    )
    plan = BatchPlan("sft", ranks, BATCH, BATCH // ranks, micro, BATCH // ranks // micro)
    if kind == "dpo":
        from trl import DPOConfig

        from align.trainers.dpo import DPOTrainer, dpo_options

        own = dpo_options(**({"beta": 0.1, "nll_coef": 0.2, "batch_size": 3} | (trainer or {})))
        args = training_arguments(section, plan, ModelSection(path="x"), folder, seed=3, made=DPOConfig, **own)
        sets = {"train_dataset": rows, "eval_dataset": heldout, "data_collator": PreferenceCollator(PAD)}
        return DPOTrainer(model or causal_lm(torch.float32), args, processing_class=byte_tokenizer(), **sets)
    args = training_arguments(section, plan, ModelSection(path="x"), folder, seed=3)
    if kind == "sft":
        options = trainer or {}
        collator = CausalCollator(PAD, with_turns=options.get("loss_reduction", "token_mean") != "token_mean")
        return SFTTrainer(
            model or causal_lm(), args, train_dataset=rows, eval_dataset=heldout, data_collator=collator, **options
        )
    if kind == "groups":
        collator = GroupCollator(PAD, trainer["options"])
        sets = {"train_dataset": rows, "eval_dataset": heldout, "data_collator": collator}
        return GroupRewardTrainer(model or reward_model(), args, output_layer=output_layer(), **sets, **trainer)
    return RewardTrainer(
        model or reward_model(), args, train_dataset=rows, eval_dataset=heldout, data_collator=PairCollator(PAD)
    )


def step_gradients(kind: str, folder: Path, rows: list[dict], **options: Any) -> dict[str, torch.Tensor]:
    """Gradients of the first optimizer step."""
    trainer = make_trainer(kind, folder, rows, **options)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.steps[0]
