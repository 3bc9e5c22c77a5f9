"""Held-out accuracy of reward training beside `trl.RewardTrainer`, on the pairs of a recipe.

    python examples/compare_reward_trl.py real_small data_root=FOLDER [key=value …] [--seeds 0 1 2] [--out FILE]

Arms: ours from the base model, ours after PMP (where the recipe has that stage), TRL from the base model. All arms of a
seed train on the same token ids in as many optimizer steps, with the same batch size, learning rate, schedule and
optimizer, without dropout, and are measured on the same held-out pairs. TRL's arm starts with the very weights of ours,
head and adapter included; a seed is a head and an order of the pairs (each library shuffles for itself). The recipe's
base and pmp stages are run once, or taken from `output_dir` where they are finished; so are arms of a recipe and seed.

TRL's own rendering by the chat template ends with the newline after the last `<|im_end|>`, and it reads the score at
the last token; it is given our ids, which end with `<|im_end|>`. How many of its own are the same but for that newline
is printed, and how far the first scores are apart. Intervals: Wilson, 95 %, too narrow over all seeds, where each pair
counts once a seed. `rm.max_length=256 rm.center_scores=false` keeps real_small cheap.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from align.evaluation.accuracy import JudgedPair, accuracy

Lines = list[dict[str, Any]]
SAME = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps", "learning_rate")
SAME += ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "max_grad_norm", "adam_beta1")
SAME += ("adam_beta2", "adam_epsilon", "seed", "data_seed", "use_cpu", "report_to", "disable_tqdm", "bf16")


def train_trl(recipe: Any, origin: Any, folder: Path, seed: int) -> dict[str, Any]:
    """Train `trl.RewardTrainer` from the model that ours starts from; leaves `eval.jsonl`, returns its figures."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification as Classifier
    from trl import RewardConfig, RewardTrainer

    from align.data.load import train_and_heldout
    from align.models.speech import chat_format
    from align.recipe import batch_plan
    from align.runs.seeding import derive
    from align.stages import common, preferences, run_reward
    from align.trainers.arguments import training_arguments
    from data_formats.records import Comparison

    section, began = recipe.rm, time.perf_counter()
    ours, tokenizer, _ = run_reward.load(recipe, section, origin, seed, stage="rm")
    train, heldout, _ = train_and_heldout(section, Comparison, recipe)
    rows, train, _ = preferences.encode_training(tokenizer, train, section, derive(seed, "tags"))
    heldout_rows, heldout, _ = preferences.encode(tokenizer, heldout, section)
    tokenizer.pad_token = chat_format(tokenizer).padding  # a classifier reads the last token that is no padding
    path = common.origin_path(recipe, origin, stage="rm")
    model = Classifier.from_pretrained(path, num_labels=1, dtype=torch.float32, pad_token_id=tokenizer.pad_token_id)
    model = same_start(model, ours, recipe.model)
    plain = training_arguments(section, batch_plan(recipe, "rm"), recipe.model, folder, seed=derive(seed, "train"))
    options = {name: getattr(plain, name) for name in SAME}
    options |= {"max_length": None, "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 10**9}
    make = {"args": RewardConfig(str(folder), **options), "processing_class": tokenizer}
    own = RewardTrainer(model, train_dataset=Dataset.from_list([conversations(pair) for pair in train]), **make)
    same = same_ids(own.train_dataset, rows, section.max_length, tokenizer)
    trainer = RewardTrainer(model, train_dataset=Dataset.from_list(rows), **make)
    before = scores(model, heldout_rows, tokenizer.pad_token_id)
    gap = max(abs(a - b) for a, b in zip(before, scores(ours, heldout_rows, tokenizer.pad_token_id), strict=True))
    trainer.train()
    flat, lines = scores(model.eval(), heldout_rows, tokenizer.pad_token_id), []
    for pair, chosen, rejected in zip(heldout, flat[::2], flat[1::2], strict=True):
        lines.append(conversations(pair) | {"source": pair.source, "chosen_score": chosen, "rejected_score": rejected})
    common.open_folder(recipe, folder)
    common.write_lines(folder / "eval.jsonl", lines)
    figures = {"steps": trainer.state.global_step, "rows": len(rows), "start_gap": gap, **same}
    return common.finish(folder, figures, began)


def same_start(model: Any, ours: Any, section: Any) -> Any:
    """`model` with the head of ours and, where the recipe trains an adapter, with one of the same shape and weights."""
    import torch

    if section.adapter != "none":
        from peft import LoraConfig, get_peft_model

        mine = ours.backbone.peft_config["default"]
        shape = {name: getattr(mine, name) for name in ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora")}
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", **shape))
        drawn = {key: value for key, value in ours.backbone.state_dict().items() if ".lora_" in key}
        prefix = f"base_model.model.{model.base_model.model.base_model_prefix}."
        named = {key.replace("base_model.model.", prefix, 1): value for key, value in drawn.items()}
        assert not model.load_state_dict(named, strict=False).unexpected_keys
    head = [weight for name, weight in model.named_parameters() if "score" in name and weight.requires_grad]
    with torch.no_grad():
        head[0].copy_(ours.head.weight)
    return model


def conversations(pair: Any) -> dict[str, Any]:
    """A pair as TRL's conversational format."""
    prompt = [{"role": turn.role, "content": turn.content} for turn in pair.prompt]
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {"prompt": prompt} | {name: [{"role": "assistant", "content": text}] for name, text in sides.items()}


def same_ids(theirs: Any, rows: Lines, max_length: int, tokenizer: Any) -> dict[str, int]:
    """`same_ids` of `whole_pairs`: those that our encoding did not have to shorten."""
    newline, found = tokenizer("\n", add_special_tokens=False)["input_ids"], []
    for their, row in zip(theirs, rows, strict=True):
        sides = [(their[name], row[name] + newline) for name in ("chosen_ids", "rejected_ids")]
        if all(len(ids) <= max_length + len(newline) for ids, _ in sides):
            found.append(all(a == b for a, b in sides))
    return {"same_ids": sum(found), "whole_pairs": len(found)}


def scores(model: Any, rows: Lines, pad_id: int) -> list[float]:
    """Chosen, rejected, chosen, … of the rows, by a classifier or a reward model."""
    import torch

    from align.runtime.padding import pad_right
    from reward.scoring import batches_by_length

    flat = [row[name] for row in rows for name in ("chosen_ids", "rejected_ids")]
    found, own, device = [0.0] * len(flat), model.eval(), next(model.parameters()).device
    with torch.no_grad():
        for indices in batches_by_length([len(ids) for ids in flat], 32):
            ids, mask = (part.to(device) for part in pad_right([flat[index] for index in indices], pad_id))
            out = own(input_ids=ids, attention_mask=mask)
            for index, value in zip(indices, getattr(out, "logits", out).flatten().tolist(), strict=True):
                found[index] = value
    return found


def arm(recipe: Any, origin: Any, folder: Path, seed: int, *, trl: bool) -> Lines:
    """The held-out lines of one arm, which is trained unless it is finished with this very recipe."""
    from align.recipe import dump_recipe
    from align.stages import reward_controls, run_reward

    stamp = folder / "recipe.yaml"
    if not (folder / "summary.json").is_file() or stamp.read_text(encoding="utf-8") != dump_recipe(recipe):
        shutil.rmtree(folder, ignore_errors=True)
        train = train_trl if trl else lambda *given: run_reward.train_reward(recipe, recipe.rm, *given[1:])
        train(recipe, origin, folder, seed)
    return reward_controls.lines(folder)


def table(runs: list[Lines]) -> list[list[float]]:
    """One list a prompt: 1 for each pair (and run) whose chosen reply scores higher, else 0."""
    prompts: dict[str, list[float]] = {}
    for line in (line for lines in runs for line in lines):
        key = json.dumps(line["prompt"], ensure_ascii=False)
        prompts.setdefault(key, []).append(float(line["chosen_score"] > line["rejected_score"]))
    return list(prompts.values())


def share(rows: list[list[float]]) -> dict[str, Any]:
    """Accuracy of a `table`; answers to one prompt are not independent in its interval."""
    return accuracy([JudgedPair(hit - 0.5, None, prompt=str(at)) for at, row in enumerate(rows) for hit in row], True)


def compare(recipe: Any, seeds: list[int]) -> dict[str, Any]:
    """Train what is missing; accuracies by seed and over all, differences of the arms, baselines, checks."""
    from align.evaluation.compare import paired_difference
    from align.recipe.lineage import init_origin, stage_dir
    from align.runs.seeding import derive
    from align.stages import chain

    stages = [name for name in ("base", "pmp") if getattr(recipe, name) is not None]
    for stage in stages:
        chain.run_stage(recipe, stage)
    start = {"ours": init_origin(recipe, "pmp" if recipe.pmp else "rm")}
    start |= {"ours after pmp": init_origin(recipe, "rm")} if recipe.pmp else {}
    start["trl"] = start["ours"]
    found: dict[str, list[Lines]] = {name: [] for name in start}
    root = stage_dir(recipe, "compare_reward_trl")
    for seed in seeds:
        for name, origin in start.items():
            folder = root / f"seed-{seed}" / name.replace(" ", "_")
            found[name].append(arm(recipe, origin, folder, derive(seed, "rm"), trl=name == "trl"))
            done = share(table(found[name][-1:]))
            print(f"seed {seed}, {name}: {done['correct']} of {done['pairs']}", flush=True)
    figures: dict[str, Any] = {"seeds": seeds, "arms": {}, "differences": {}}
    for name, runs in found.items():
        figures["arms"][name] = {"pooled": share(table(runs)), "by_seed": [share(table([one])) for one in runs]}
        if name != "trl":
            figures["differences"][f"{name} - trl"] = {
                "pooled": paired_difference(table(found["trl"]), table(runs)),
                "by_seed": [paired_difference(table([a]), table([b])) for a, b in zip(found["trl"], runs, strict=True)],
            }
    ours, trl = (json.loads((root / f"seed-{seeds[0]}/{one}/summary.json").read_text()) for one in ("ours", "trl"))
    figures |= {name: ours[name] for name in ("length_baseline", "majority_baseline", "rows")}
    checks = {name: trl[name] for name in ("same_ids", "whole_pairs", "start_gap")}
    return figures | checks | {"steps": {"ours": ours["steps"], "trl": trl["steps"]}}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped recipe, with a stage rm of plain pairs")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="a file for the figures as JSON")
    options = parser.parse_intermixed_args(argv)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    from align.recipe.check import check_recipe

    recipe = check_recipe(options.recipe, options.overrides)
    if recipe.rm is None or recipe.rm.grouped:
        parser.error(f"{recipe.name} needs a stage rm that trains plain pairs, as TRL does")
    figures = compare(recipe, options.seeds)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    from align.runs.launch import guarded, prepare, started_as

    prepare()
    with guarded(proceed=started_as(sys.argv[0], sys.argv[1:])) as ending:
        main()
    sys.exit(ending.code)
