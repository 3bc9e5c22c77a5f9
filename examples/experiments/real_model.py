"""What RLHF does to a real chat model: reward models beside TRL's, PPO judged by a second one, and what it costs.

    python examples/experiments/real_model.py MODEL DATA [key=value …] [--out FOLDER] [--seeds 0 1 2]

MODEL is a folder or hub id (`$(align fetch smollm2)`), DATA the folder that recipes/smollm2_cpu.yaml reads. The pairs
of its rm stage are cut in three by their first turn: A, on which the reward model is trained, B, on which its *gold*
is, a second reward model that judges and that nothing else sees, and held-out ones, on which both are measured. All
else is the recipe's, whose keys the command line may change.

1. `sft` and `pmp`, once.
2. Per seed: reward models of A, with and without pmp, and `trl.RewardTrainer`'s (examples/compare_reward_trl.py); gold.
   Their accuracy on the held-out pairs, and on those of each source.
3. Per seed, from the sft model, on the prompts of A's pairs: PPO with and without ptx. Judged on prompts of held-out
   pairs by reward and gold; KL; distinct n-grams of the sampled replies; loss on web text that is in no ptx_data.

What is finished in FOLDER is not run again, what was begun goes on. FOLDER holds `figures.json`, and each PPO run's
`report/index.html` with replies before and after.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))  # where compare_reward_trl lies
HELDOUT, NOT_A = 0.3, 0.65  # what the hash of a pair's first turn is below
WEB_SHARE, WEB_BLOCK, WEB_BLOCKS = 0.3, 128, 100
GOLD = "gold (pairs B)"
ARMS = {"without ptx": ["ppo.ptx_coef=0", "ppo.ptx_data=[]"], "with ptx": []}


def write_data(recipe: Any, folder: Path) -> None:
    """The three sets of pairs, the prompts of A and of the held-out pairs, and web text in two."""
    from align.data.load import load_records
    from data_formats import write_jsonl
    from data_formats.records import Comparison, Document, Prompt
    from data_formats.splitting import split_heldout

    pairs, _ = load_records(recipe.rm.data, Comparison, recipe)
    documents, _ = load_records(recipe.ppo.ptx_data, Document, recipe)
    sets: dict[str, list[Any]] = {}
    rest, sets["heldout"] = split_heldout(pairs, HELDOUT)
    sets["a"], sets["b"] = split_heldout(rest, NOT_A)
    for name in ("a", "heldout"):
        prompts = {pair.prompt: Prompt(pair.prompt, source=pair.source) for pair in sets[name]}
        sets[f"{name}_prompts"] = list(prompts.values())
    sets["web"], sets["web_heldout"] = split_heldout(documents, WEB_SHARE)
    for name, records in sets.items():
        write_jsonl(folder / f"{name}.jsonl", records)


def gold_model(recipe: Any, data: Path, folder: Path, seed: int) -> str:
    """The folder of the reward model of B, which starts from the chat model itself; trained where it is not there."""
    from align.recipe.fields import Source
    from align.recipe.lineage import init_origin
    from align.runs.seeding import derive
    from align.stages.run_reward import train_reward

    if not (folder / "summary.json").is_file():
        section = recipe.rm.model_copy(update={"data": (Source(path=str(data / "b.jsonl")),)})
        train_reward(recipe, section, init_origin(recipe, "pmp"), folder, derive(seed, "gold"), stage="rm")
    return str(folder / "model")


def ppo_run(
    words: Sequence[str], own: Sequence[str], data: Path, start: Path, reward: Path, gold: str, folder: Path
) -> dict[str, Any]:
    """One PPO run with its report; its summary with `distinct_ngrams` and `web_loss`, before and after.

    Args:
        words: overrides of the whole chain, over which those of the run go.
        own: overrides of its arm, which go over all others.
    """
    from align.recipe import load_recipe
    from align.runtime.files import write_json
    from align.stages.chain import run_chain

    file = folder / "figures.json"
    if not file.is_file():
        models = [f"ppo.init_from={start}", f"ppo.reward_from={reward}"]
        models += [f"ppo.gold_reward={{kind: model, model_from: {gold}}}"]
        sets = [f"ppo.data=[{data}/a_prompts.jsonl]", f"ppo.eval_data=[{data}/heldout_prompts.jsonl]"]
        alone = ["sft=null", "pmp=null", "rm=null", f"output_dir={folder}", f"ppo.ptx_data=[{data}/web.jsonl]"]
        recipe = load_recipe("smollm2_cpu", [*words, *alone, *models, *sets, *own])
        found = run_chain(recipe)["ppo"]
        found["distinct_ngrams"] = distinct_ngrams(folder / "ppo/eval.jsonl")
        after = folder / "ppo/model"
        found["web_loss"] = [web_loss(recipe, path, data / "web_heldout.jsonl") for path in (start, after)]
        write_json(file, found)
    return json.loads(file.read_text(encoding="utf-8"))


def distinct_ngrams(file: Path) -> list[list[float]]:
    """Different n-grams of words among all of them (Li et al. 2016), n = 1, 2, 3, of the sampled replies before and
    after."""
    from align.stages.common import read_rows

    rows, found = read_rows(file), []
    for who in ("sft", "ppo"):
        texts = [one["reply"].split() for row in rows for one in row["sampled"][who]]
        grams = [[tuple(text[at : at + n]) for text in texts for at in range(len(text) - n + 1)] for n in (1, 2, 3)]
        found.append([len(set(each)) / max(len(each), 1) for each in grams])
    return found


def web_loss(recipe: Any, path: Path, file: Path) -> float:
    """Nats a token on blocks of web text."""
    import torch

    from align.data.encode import encode_documents
    from align.models.load import load_causal_lm
    from align.models.tokenizer import load_tokenizer
    from align.trainers.ppo.ptx import ptx_loss_sum
    from data_formats import read
    from data_formats.records import Document

    tokenizer = load_tokenizer(str(path))
    model = load_causal_lm(str(path), recipe.model, tokenizer=tokenizer, use="frozen")
    blocks = encode_documents(tokenizer, read(file, Document).records, WEB_BLOCK)[:WEB_BLOCKS]
    ids = torch.tensor([block for block in blocks if len(block) == WEB_BLOCK])
    with torch.no_grad():
        total = sum(float(ptx_loss_sum(model, part, torch.ones_like(part))[0]) for part in ids.split(8))
    return total / (len(ids) * (WEB_BLOCK - 1))


def reward_table(found: dict[str, Any], golds: list[dict[str, Any]]) -> str:
    """A line an arm: held-out accuracy of every seed with its interval."""
    arms = {name: arm["by_seed"] for name, arm in found["arms"].items()} | {GOLD: golds}
    lines = [f"| reward model | {' | '.join(f'seed {seed}' for seed in found['seeds'])} |"]
    lines.append("|---|" + "---:|" * len(found["seeds"]))
    for name, runs in arms.items():
        lines.append(f"| {name} | {' | '.join(map(interval, runs))} |")
    lines.append(
        f"\nlength alone: {found['length_baseline']:.1%} of {golds[0]['pairs']} pairs; before training no score of"
    )
    lines.append(f"trl's arm is further than {found['start_gap']:.2g} from ours, which starts from the same weights")
    return "\n".join(lines)


def by_source(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Accuracy on the pairs of each source that these reward models were judged on, all together."""
    import compare_reward_trl

    from align.stages.reward_controls import lines

    parts: dict[str, list[dict[str, Any]]] = {}
    for line in (line for folder in folders for line in lines(folder)):
        parts.setdefault(line.get("source", ""), []).append(line)
    return {name: compare_reward_trl.share(compare_reward_trl.table([parts[name]])) for name in sorted(parts)}


def source_table(parts: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A line an arm: held-out accuracy by where the pairs are from, all seeds together."""
    sources = sorted({name for found in parts.values() for name in found})
    lines = [f"| reward model, all seeds | {' | '.join(sources)} |", "|---|" + "---:|" * len(sources)]
    for arm, found in parts.items():
        cells = (interval(found[name]) if name in found else "" for name in sources)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(share: dict[str, Any]) -> str:
    """An accuracy with its 95 % interval."""
    return f"{share['accuracy']:.1%} [{share['accuracy_low']:.1%}, {share['accuracy_high']:.1%}]"


def ppo_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """A line an arm and seed, before → after; scores of the replies at temperature 1."""
    lines = ["| arm | seed | reward | gold | gain of gold | KL, nats a reply | distinct 1-, 2-, 3-grams | web loss |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for arm, found in runs.items():
        for one in found:
            gain, (before, after) = one["gold_reward_gain_sampled"], one["distinct_ngrams"]
            cells = [arm, str(one["seed"])]
            cells += [f"{one[f'{name}_before']:.2f} → {one[name]:.2f}" for name in ("score", "gold")]
            cells += [f"{gain['difference']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]", f"{one['kl']:.2f}"]
            cells.append(", ".join(f"{a:.2f} → {b:.2f}" for a, b in zip(before, after, strict=True)))
            cells.append("{:.3f} → {:.3f}".format(*one["web_loss"]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def study(model: str, data_root: Path, out: Path, seeds: list[int], overrides: Sequence[str]) -> dict[str, Any]:
    """Everything, as `figures.json` has it."""
    import compare_reward_trl

    from align.recipe import load_recipe
    from align.stages.chain import run_stage
    from align.stages.common import read_summary

    data, chain = out / "data", out / "chain"
    words = [f"model.path={model}", f"data_root={data_root}", *overrides]
    if not (data / "web_heldout.jsonl").is_file():  # written last
        write_data(load_recipe("smollm2_cpu", words), data)
    pairs = [f"rm.data=[{data}/a.jsonl]", f"rm.eval_data=[{data}/heldout.jsonl]"]
    recipe = load_recipe("smollm2_cpu", [*words, *pairs, f"output_dir={chain}", f"seed={seeds[0]}"])
    run_stage(recipe, "sft")
    rewards = compare_reward_trl.compare(recipe, seeds)
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    golds = []
    for seed in seeds:
        gold = gold_model(recipe, data, out / f"gold/seed-{seed}", seed)
        golds.append(read_summary(out / f"gold/seed-{seed}"))
        reward = chain / f"compare_reward_trl/seed-{seed}/ours_after_pmp/model"
        for arm, own in ARMS.items():
            folder = out / f"ppo/{arm.replace(' ', '_')}/seed-{seed}"
            one = ppo_run([*words, f"seed={seed}"], own, data, chain / "sft/model", reward, gold, folder)
            runs[arm].append(one | {"seed": seed})
    names = {arm: f"chain/compare_reward_trl/seed-{{}}/{arm.replace(' ', '_')}" for arm in rewards["arms"]}
    names[GOLD] = "gold/seed-{}"
    parts = {arm: by_source([out / name.format(seed) for seed in seeds]) for arm, name in names.items()}
    return {"reward_models": rewards, "gold": golds, "by_source": parts, "ppo": runs}


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print the tables; returns the exit code."""
    from align.runs.launch import guarded, prepare
    from align.runtime.files import write_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA", type=Path)
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("runs/real_model"))
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_intermixed_args(argv)
    prepare()

    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        found = study(args.model, args.data.resolve(), args.out.resolve(), args.seeds, args.overrides)
        write_json(args.out / "figures.json", found)
        tables = [reward_table(found["reward_models"], found["gold"]), source_table(found["by_source"])]
        print(*tables, ppo_table(found["ppo"]), sep="\n\n")
    return ending.code


if __name__ == "__main__":
    sys.exit(main())
