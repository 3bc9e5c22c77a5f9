"""The embedded world's files: those that need no model, and the clean comparisons, which need the SFT model's replies.

Everything is written to `<output_dir>/world/` as the rows any user's files could have, and read back from there by the
ordinary readers.
"""

from __future__ import annotations

import logging
from typing import Any

from align.evaluation.replies import judged_replies
from align.recipe import Recipe
from align.recipe.lineage import Origin
from align.recipe.sources import world_dir, world_seed
from align.runs.seeding import derive
from align.runtime.files import write_json
from align.stages.common import origin_path
from align.tinyworld import labels, sets
from align.tinyworld.gold import GOLD_RANGE
from align.tinyworld.world import Part, World
from data_formats import write_jsonl
from data_formats.chat_format import chat_format
from data_formats.records import Comparison, Prompt
from rollouts.protocol import SamplingParams

LOG = logging.getLogger("align")
REPLIES_A_PROMPT = 4
PAIRS_A_PROMPT = 4
LABELLED: dict[str, Part] = {"comparisons": "train", "heldout_comparisons": "heldout"}


def materialise(recipe: Recipe) -> None:
    """Write documents, demonstrations, crowd comparisons and prompts."""
    world, sizes = World(world_seed(recipe)), recipe.tinyworld
    records: dict[str, list[Any]] = {
        "documents": sets.documents(world, sizes.documents),
        "demonstrations": sets.demonstrations(world, sizes.demonstrations),
        "coarse_comparisons": sets.coarse_comparisons(world, sizes.coarse_comparisons),
        "prompts": sets.prompts(world, sizes.prompts, part="train"),
        "eval_prompts": sets.prompts(world, sizes.eval_prompts, part="eval"),
    }
    for name, rows in records.items():
        write_jsonl(world_dir(recipe) / f"{name}.jsonl", rows)
    LOG.info("world %d: %s", world.seed, ", ".join(f"{len(rows)} {name}" for name, rows in records.items()))


def label_comparisons(recipe: Recipe) -> None:
    """Write both sets of clean comparisons, see `clean_comparisons`."""
    for name in LABELLED:
        pairs, figures = clean_comparisons(recipe, name, getattr(recipe.tinyworld, name))
        write_json(world_dir(recipe) / f"{name}.info.json", figures)
        write_jsonl(world_dir(recipe) / f"{name}.jsonl", pairs)
        LOG.info("world %d: %s: %s", world_seed(recipe), name, figures)


def clean_comparisons(recipe: Recipe, name: str, size: int) -> tuple[list[Comparison], dict[str, Any]]:
    """Replies sampled from the SFT model at temperature 1, `size` pairs of them judged by the gold score; and figures.

    Args:
        name: one of `LABELLED`, which says of what prompts.
    """
    world, part = World(world_seed(recipe)), LABELLED[name]
    prompts = sets.prompts(world, max(1, size // PAIRS_A_PROMPT), part=part)
    sampled = _sample(recipe, prompts, part)
    pairs = labels.clean_comparisons(world, sampled, size, name=name)
    said = {reply for replies in sampled.values() for reply in replies}  # to this question, or astray from another
    replies = [reply for pair in pairs for reply in (pair.chosen, pair.rejected)]
    return pairs, {
        "pairs": len(pairs),
        "sampled_share": sum(one in said for one in replies) / len(replies),
        "correctness_share": sum(labels.CORRECTNESS in pair.tags for pair in pairs) / len(pairs),
        "gold_range": list(GOLD_RANGE),
    }


def _sample(recipe: Recipe, prompts: list[Prompt], part: Part) -> dict[str, list[str]]:
    from align.models.load import load_causal_lm
    from align.models.tokenizer import load_tokenizer
    from rollouts.hf import HFEngine

    path = origin_path(recipe, Origin("stage", "sft"), stage="rm")
    tokenizer = load_tokenizer(path)
    policy = load_causal_lm(path, recipe.model, tokenizer=tokenizer, use="frozen")
    engine = HFEngine(policy, tokenizer.pad_token_id, batch_size=256)
    params = SamplingParams(
        n=REPLIES_A_PROMPT,
        max_new_tokens=recipe.sft.max_completion_length,
        stop_token_ids=chat_format(tokenizer).stop_ids,
        seed=derive(recipe.seed, "comparisons", part),
    )
    judged = judged_replies(engine, tokenizer, prompts, params, ())
    return {
        prompt.messages[-1].content: [reply.text for reply in replies]
        for prompt, replies in zip(prompts, judged, strict=True)
    }
