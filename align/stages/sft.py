"""Supervised finetuning on conversations, then a look at what the model says.

Replies to held-out prompts are sampled at temperature 1 and top-p 1 with the HF engine. `end_rate` is the share that
ended with `<|im_end|>` themselves, `distinct` the share of different texts among them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from align.recipe.lineage import Origin, init_origin, stage_dir
from align.recipe.stages import SFTSection
from align.runs.seeding import derive
from align.stages import causal, common
from data_formats.records import Demonstration, Message, Prompt


def run(
    recipe: Recipe, stage: str = "sft", *, init_from: Origin | None = None, out_dir: Path | None = None
) -> dict[str, Any]:
    """Run the stage and leave its folder behind; returns the summary (`heldout_loss`, `end_rate`, `distinct`, …)."""
    from align.data.encode import encode_demonstrations
    from align.data.load import train_and_heldout

    began = time.perf_counter()
    section: SFTSection = getattr(recipe, stage)
    out_dir = out_dir or stage_dir(recipe, stage)
    model, tokenizer = causal.load(recipe, stage, init_from or init_origin(recipe, stage), section)
    common.open_folder(recipe, out_dir)
    train, heldout, reports = train_and_heldout(section, Demonstration, recipe)
    rows, dropped = encode_demonstrations(tokenizer, train, section.max_length, section.on_overlong)
    heldout_rows, heldout_dropped = encode_demonstrations(tokenizer, heldout, section.max_length, section.on_overlong)
    read = common.account(stage, section, reports, (rows, dropped), (heldout_rows, heldout_dropped))
    trainer, figures = causal.fit(
        recipe,
        stage,
        section,
        out_dir,
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        heldout=heldout_rows,
        measure_before=True,
    )
    samples: list[dict[str, Any]] = []
    if common.is_main():
        policy = trainer.accelerator.unwrap_model(trainer.model)
        samples = sample_replies(policy, tokenizer, heldout, section, derive(recipe.seed, stage, "replies"))
        common.write_lines(out_dir / "samples.jsonl", samples)
    trainer.accelerator.wait_for_everyone()
    figures |= reply_figures(samples) | read
    return common.finish(out_dir, figures, began)


def heldout_prompts(demos: list[Demonstration], size: int) -> list[Prompt]:
    """Up to `size` different prompts: what stands before the last assistant turn, that turn as the reference."""
    chosen: dict[tuple[Message, ...], Prompt] = {}
    for demo in demos:
        exchange = demo.last_exchange()
        if exchange is not None and len(chosen) < size:
            chosen.setdefault(exchange[0], Prompt(exchange[0], demo.category, reference=exchange[1]))
    return list(chosen.values())


def sample_replies(
    model: Any, tokenizer: Any, demos: list[Demonstration], section: SFTSection, seed: int
) -> list[dict[str, Any]]:
    """One reply to each of the first `eval_num_replies` held-out prompts that fit, as rows of `samples.jsonl`."""
    from align.data.encode import encode_prompts
    from align.evaluation.replies import decodings, judged_replies
    from rollouts.hf import HFEngine

    asked = heldout_prompts(demos, section.eval_num_replies)
    lengths = [len(ids) for ids in encode_prompts(tokenizer, [prompt.messages for prompt in asked])]
    asked = [prompt for prompt, length in zip(asked, lengths, strict=True) if length <= section.max_length]
    params = decodings(tokenizer, num_samples=1, max_new_tokens=section.max_completion_length, seed=seed)["sampled"]
    engine = HFEngine(model, tokenizer.pad_token_id, batch_size=section.eval_batch_size)
    judged = judged_replies(engine, tokenizer, asked, params, ()) if asked else []
    return [
        {
            "prompt": [{"role": message.role, "content": message.content} for message in prompt.messages],
            **reply.row(),
            "reference": prompt.reference,
            "category": prompt.category,
        }
        for prompt, (reply,) in zip(asked, judged, strict=True)
    ]


def reply_figures(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """`end_rate`, `distinct` and mean length in tokens of sampled replies; empty without samples."""
    if not samples:
        return {}
    n = len(samples)
    return {
        "replies": n,
        "end_rate": sum(sample["finished"] for sample in samples) / n,
        "distinct": len({sample["reply"] for sample in samples}) / n,
        "reply_tokens": sum(sample["tokens"] for sample in samples) / n,
    }
