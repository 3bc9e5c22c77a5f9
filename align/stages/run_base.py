"""(Continued) pretraining on documents.

With `model.architecture` the tokenizer is trained on the training documents and the model starts from random weights;
with `model.path` (or `base.init_from`) both are loaded and training goes on, which serves Code-Qwen-like runs.
Documents are joined and cut into blocks of `max_length` tokens. The yardstick in the summary, `unigram_entropy`, is
what a model without any context would lose on the same held-out tokens.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from align.recipe.lineage import Origin, init_origin, stage_dir
from align.runs.seeding import derive
from align.stages import common, supervised
from align.stages.selection import chosen
from align.stages.supervised import Record
from align.stages.user_code import own_callbacks, trainer_class
from align.trainers.sft import SFTTrainer
from data_formats.records import Document

SAMPLES, BEGINNING, CONTINUED = 8, 12, 36


def run_base(
    recipe: Recipe, stage: str = "base", *, init_from: Origin | None = None, out_dir: Path | None = None
) -> dict[str, Any]:
    """Run the stage and leave its folder behind; returns the summary (losses in nats a token)."""
    from align.data.encode import encode_documents
    from align.data.load import train_and_heldout
    from align.data.mixture import by_part

    began = time.perf_counter()
    section = getattr(recipe, stage)
    out_dir = out_dir or stage_dir(recipe, stage)
    common.open_folder(recipe, out_dir)
    train, heldout, reports = train_and_heldout(section, Document, recipe)
    train, choice = chosen(recipe, stage, section, train, out_dir)
    origin = init_from or init_origin(recipe, stage)
    model, tokenizer = _start(recipe, stage, origin, train)
    rows = [
        {"input_ids": block} | ({"part": part} if part else {})
        for part, documents in by_part(train).items()
        for block in encode_documents(tokenizer, documents, section.max_length)
    ]
    heldout_blocks = encode_documents(tokenizer, heldout, section.max_length)
    read = choice | supervised.account(stage, section, reports, (rows, {}), (heldout_blocks, {}))
    heldout_rows = [{"input_ids": block} for block in heldout_blocks]
    rows, blocks = supervised.seen(rows, section, recipe, read), [row["input_ids"] for row in rows]
    args = supervised.arguments(recipe, stage, section, out_dir, evaluate=bool(heldout_rows))
    trainer = trainer_class(section, stage, SFTTrainer)(
        model,
        args,
        train_dataset=rows,
        eval_dataset=heldout_rows or None,
        processing_class=tokenizer,
        callbacks=own_callbacks(section, stage),
        mixture=section.mixture,
    )
    record = Record(trainer, tokenizer, stage, recipe, section)
    figures = record.once("before", lambda: _before(trainer, new=origin.kind == "new")) | record.train()
    figures["heldout_loss"] = supervised.heldout_metrics(trainer).get("eval_loss")
    if common.is_main():
        policy = trainer.accelerator.unwrap_model(trainer.model)
        samples = continuations(policy, tokenizer, heldout_blocks, derive(recipe.seed, stage, "samples"))
        common.write_lines(out_dir / "samples.jsonl", samples)
    trainer.accelerator.wait_for_everyone()
    entropy = unigram_entropy(blocks, heldout_blocks, len(tokenizer)) if heldout_blocks else None
    summary = {
        **figures,
        "rows": len(rows),
        "heldout_rows": len(heldout_rows),
        "unigram_entropy": entropy,
        "documents": len(train),
        "tokens": sum(map(len, blocks)),
        "vocab_size": len(tokenizer),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **read,
    }
    return common.finish(out_dir, summary, began)


def _before(trainer: SFTTrainer, *, new: bool) -> dict[str, Any]:
    """The held-out loss before training; of a new model none, but a batch is tried."""
    if new:
        supervised.try_evaluation(trainer)
        return {}
    return {"heldout_loss_before": supervised.heldout_metrics(trainer).get("eval_loss")}


def _start(recipe: Recipe, stage: str, origin: Origin, train: list[Document]) -> tuple[Any, Any]:
    section = getattr(recipe, stage)
    if origin.kind != "new":
        return supervised.load(recipe, stage, origin, section)
    from align.models.load import new_causal_lm
    from align.models.tokenizer import train_tokenizer
    from align.trainers.supervised import set_attention_dropout

    tokenizer = train_tokenizer([document.text for document in train], recipe.model.architecture.vocab_size)
    model = new_causal_lm(recipe.model.architecture, tokenizer, derive(recipe.seed, stage, "weights"))
    set_attention_dropout(model, section.attention_dropout)
    return model, tokenizer


def continuations(model: Any, tokenizer: Any, blocks: list[list[int]], seed: int) -> list[dict[str, Any]]:
    """Rows of `samples.jsonl`: the beginnings of a few held-out blocks, and what the model and the text go on with."""
    from rollouts.hf import HFEngine
    from rollouts.protocol import SamplingParams

    begun = [block for block in blocks if len(block) > BEGINNING][:SAMPLES]
    if not begun:
        return []
    params = SamplingParams(max_new_tokens=CONTINUED, seed=seed)
    replies = HFEngine(model, tokenizer.pad_token_id).generate([block[:BEGINNING] for block in begun], params)
    return [
        {
            "prompt": tokenizer.decode(block[:BEGINNING]),
            "reply": tokenizer.decode(reply.token_ids),
            "reference": tokenizer.decode(block[BEGINNING : BEGINNING + CONTINUED]),
        }
        for block, reply in zip(begun, replies, strict=True)
    ]


def unigram_entropy(train: Iterable[Sequence[int]], heldout: Iterable[Sequence[int]], vocab_size: int) -> float:
    """Cross-entropy in nats a token of the held-out tokens under the training tokens' frequencies.

    One is added to every count, so that a token never seen costs something finite. The first token of every held-out
    block is left out: the model is not asked to predict it either, so both figures are over the same tokens.

    Args:
        train, heldout: blocks of token ids.
        vocab_size: number of possible tokens.
    """
    seen = Counter(token for block in train for token in block)
    asked = Counter(token for block in heldout for token in block[1:])
    total = seen.total() + vocab_size
    return -sum(n * math.log((seen[token] + 1) / total) for token, n in asked.items()) / max(asked.total(), 1)
