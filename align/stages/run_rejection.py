"""Rejection-sampling finetuning: K replies a prompt, the best by the reward is kept and trained on (Llama 2, 3.2.3).

In every round the replies are sampled from the newest model, which is then finetuned on the kept ones: the first round
starts from the sft stage's model (or `init_from`), each later one from the model of the round before.

With `earlier_from` the best reply may also be one that an earlier stage sampled (`rounds/0/earlier.jsonl`), of round 0.

Leaves `rounds/<n>/` with `samples.jsonl` (every candidate, `align.stages.candidates`), `demonstrations.jsonl` (what was
trained on), `heldout.jsonl` (greedy replies to `eval_data`; `rounds/0` holds those of the first model), `model/` and
what an sft stage leaves; and `model/` (of the last round), `metrics.jsonl` (a line a round) and `summary.json`. A run
that was stopped goes on with the same files, in whichever phase it was. Ranks share the sampling and the held-out
prompts.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from align.recipe import Recipe, batch_plan
from align.recipe.lineage import Origin, init_origin, reward_origins, stage_dir
from align.recipe.rejection_section import RejectionSection
from align.runs.early_stopping import reason_to_end
from align.runs.errors import TrainingError
from align.runs.seeding import derive
from align.runs.trackers import Trackers
from align.runtime import files
from align.runtime.ranks import agree, barrier, is_main
from align.stages import best_replies, candidates, common, run_sft
from align.stages.candidates import REWARD, Sampler
from align.stages.common import Summary
from align.stages.drafts import prove_outputs
from align.stages.heldout_replies import shared
from align.stages.prompts import fitting
from align.stages.selection import chosen
from data_formats.errors import DataError
from data_formats.records import Prompt

ROUNDS, DEMONSTRATIONS, HELDOUT = "rounds", "demonstrations.jsonl", "heldout.jsonl"


def run_rejection(
    recipe: Recipe, stage: str = "rejection", *, section: RejectionSection | None = None, out_dir: Path | None = None
) -> Summary:
    """Run the stage and leave its folder behind; goes on where an earlier run stopped.

    Args:
        section: in place of the recipe's, for an experiment.
        out_dir: in place of `<output_dir>/rejection`.

    Returns:
        The summary, also in `summary.json`: `rounds` with the figures of each, `score_single` and `score_best` of the
        last, `score_greedy_before` and `score_greedy` on the held-out prompts, …

    Raises:
        AlignError: a leaf that names what is missing or wrong; RewardError when the reward fails.
        EmptyDatasetError: no prompt fits, or no reply is kept.
        StageStopped: Ctrl-C while finetuning; a checkpoint was written.
    """
    began = time.perf_counter()
    section = section or recipe.rejection
    recipe = recipe.model_copy(update={"rejection": section})
    batch_plan(recipe, stage)
    out_dir, origin = out_dir or stage_dir(recipe, stage), init_origin(recipe, stage)
    newest = common.origin_path(recipe, origin, stage=stage)
    common.open_folder(recipe, out_dir)
    prompts, heldout, read = read_prompts(recipe, section, newest, stage, out_dir)
    prove_outputs(stage, out_dir, None, {})  # its models are tried by the finetuning of the first round
    best = best_of_earlier(Sampler(recipe, newest, stage), prompts, section, out_dir / ROUNDS / "0")
    before = evaluate_heldout(Sampler(recipe, newest, stage), heldout, out_dir / ROUNDS / "0")
    trackers = Trackers(recipe, out_dir)
    rounds: list[Summary] = []
    for number in range(1, section.num_rounds + 1):
        folder = out_dir / ROUNDS / str(number)
        common.LOG.info("%s: round %d of %d samples from %s", stage, number, section.num_rounds, newest)
        with closing(Sampler(recipe, newest, stage)) as sampler:
            rows = candidates.sample_round(sampler, prompts, folder, seed=derive(recipe.seed, stage, "round", number))
        best = best_replies.choose(best, rows, number, section.keep_earlier)
        kept = best_replies.above(best, section.threshold)
        best_replies.require_some(kept, best, section, stage)
        if is_main():
            common.write_rows(folder / DEMONSTRATIONS, best_replies.demonstrations(prompts, kept))
        found = finetune(recipe, stage, section, newest, folder)
        newest = str(folder / "model")
        found |= best_replies.figures(rows, best, kept, number)
        found |= evaluate_heldout(Sampler(recipe, newest, stage), heldout, folder)
        rounds.append({"round": number, **found})
        lines = [logged(one) for one in rounds]
        common.write_lines(out_dir / "metrics.jsonl", lines)
        if is_main():
            trackers.send(number, lines[-1])
        if reason := no_better(section, before, lines):
            common.LOG.info("%s: ends after round %d of %d: %s", stage, number, section.num_rounds, reason)
            break
    put_model(Path(newest), out_dir / "model")
    early = {"stopped_early": f"{reason}; round {number} of {section.num_rounds}"} if reason else {}
    origins = {role: asdict(one) for role, one in ({"policy": origin} | reward_origins(recipe, stage)).items()}
    counts = {"prompts": len(prompts), "eval_prompts": len(heldout), "origins": origins}
    return common.finish(out_dir, read | counts | early | summary_figures(before, rounds), began)


def best_of_earlier(
    sampler: Sampler, prompts: Sequence[Prompt], section: RejectionSection, folder: Path
) -> list[best_replies.Best | None]:
    """Each prompt's best reply of earlier stages (`earlier_from`), None where there is none."""
    none: list[best_replies.Best | None] = [None] * len(prompts)
    with closing(sampler):
        rows = candidates.earlier_samples(sampler, prompts, section.earlier_from, folder)
    return best_replies.choose(none, rows, 0, keep_earlier=True) if rows else none


def read_prompts(
    recipe: Recipe, section: RejectionSection, path: str, stage: str, out_dir: Path | None = None
) -> tuple[list[Prompt], list[Prompt], Summary]:
    """The prompts to sample for, the held-out ones, and what was read and left out."""
    from align.data.load import load_records
    from align.models.tokenizer import recipe_tokenizer

    model = recipe.model
    tokenizer = recipe_tokenizer(path, model)
    prompts, reports = load_records(section.data, Prompt, recipe, section.cleaning)
    prompts, choice = chosen(recipe, stage, section, prompts, out_dir or stage_dir(recipe, stage))
    prompts, dropped = fitting(prompts, tokenizer, section.rollout, f"{stage}.data")
    heldout, more = load_records(section.eval_data, Prompt, recipe) if section.eval_data else ([], [])
    without = {}
    if heldout:
        heldout, without = fitting(heldout, tokenizer, section.rollout, f"{stage}.eval_data")
    read = choice | common.described(stage, [*reports, *more], dropped, without)
    return prompts, heldout[: section.evaluation.limit], read


def finetune(recipe: Recipe, stage: str, section: RejectionSection, start: str, folder: Path) -> Summary:
    """Finetune the model at `start` on the round's demonstrations, unless that is done; the sft stage's figures.

    Checkpoints go once the model is there: nothing resumes from them any more.
    """
    barrier()  # the demonstrations are written
    file = folder / "summary.json"
    if not file.is_file():
        told = section.finetuning(str((folder / DEMONSTRATIONS).resolve()))
        run_sft.run_sft(recipe, stage, section=told, init_from=Origin("path", start), out_dir=folder)
    barrier()
    done = common.read_summary(folder) or {}
    if is_main():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    shown = ("rows", "dropped_rows", "steps", "train_loss", "train_seconds", "seconds")
    return {name: done.get(name) for name in shown}


def evaluate_heldout(sampler: Sampler, prompts: Sequence[Prompt], folder: Path) -> Summary:
    """`score_greedy`, the mean score of greedy replies to held-out prompts, and `end_rate`; nothing without prompts.

    Unless it is there, the ranks answer and the first one writes `folder/heldout.jsonl`, a line a prompt; all read it.
    """
    if not prompts:
        return {}
    file = folder / HELDOUT

    if not file.is_file():
        with closing(sampler):
            sampler.open()
            judged = shared(prompts, lambda part, _, most: sampler.judged(part, seed=0, greedy=True, most=most))
        asked = [{"prompt": prompt.messages[-1].content, "category": prompt.category} for prompt in prompts]
        told = [line | reply.row() for line, (reply,) in zip(asked, judged, strict=True)]
        agree(lambda: common.write_lines(file, told), TrainingError)
    rows = common.read_rows(file)
    asked = [prompt.messages[-1].content for prompt in prompts]
    whole = all(isinstance(row.get(REWARD), int | float) and "finished" in row for row in rows)
    if not rows or not whole or any(row.get("prompt") != text for row, text in zip(rows, asked, strict=False)):
        told = f"{file} holds {len(rows)} replies to other prompts than the {len(asked)} of rejection.eval_data"
        raise DataError(f"{told}: remove it to have them answered")
    return {
        "score_greedy": fmean(row[REWARD] for row in rows if row[REWARD] is not None),
        "end_rate": fmean(float(row["finished"]) for row in rows),
    }


def logged(found: Summary) -> Summary:
    """A round's line of `metrics.jsonl`: its plain numbers."""
    plain = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return {"step": plain.pop("round"), **plain, "gap": found["by_k"][-1]["gap"]}


def no_better(section: RejectionSection, before: Summary, lines: Sequence[Summary]) -> str | None:
    """Why these rounds' lines end the stage before its last round, in words; None: they do not."""
    if section.early_stopping is None or len(lines) == section.num_rounds:
        return None
    metric = section.early_stopping.metric or section.stopped_by
    if metric not in lines[-1]:
        raise TrainingError(f"early_stopping.metric: no round logs '{metric}'; they log {', '.join(lines[-1])}")
    return reason_to_end([{"step": 0, **before}, *lines], metric, section.early_stopping)


def put_model(source: Path, target: Path) -> None:
    """The last round's model under the stage's own name; the files are shared where the file system can."""

    def share(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    if is_main():
        with files.atomic_dir(target) as draft:
            shutil.copytree(source, draft, copy_function=share, dirs_exist_ok=True)
    barrier()


def summary_figures(before: Summary, rounds: Sequence[Summary]) -> Summary:
    """The figures of the whole stage, and its rows of the chain's table."""
    first, last = rounds[0], rounds[-1]
    shown = ("score_single", "score_best", "score_kept", "kept", "kept_share", "by_k")
    found: Summary = {"rounds": list(rounds), "steps": sum(one["steps"] for one in rounds)}
    found |= {name: last[name] for name in shown}
    of_k = f"best of {last['by_k'][-1]['k']}"
    rows: list[tuple[str, Any, Any]] = [(f"reward: one sample, {of_k}", last["score_single"], last["score_best"])]
    if len(rounds) > 1:
        rows.append((f"reward of one sample, round 1 and {len(rounds)}", first["score_single"], last["score_single"]))
    gaps = {row["k"]: row["gap"] for row in last["by_k"]}
    rows.append((f"gap of best and median, 2 and {max(gaps)} samples", gaps[2], gaps[max(gaps)]))
    rows.append(("prompts with a reply kept", None, f"{last['kept']} of {last['prompts']}"))
    if before:
        found |= {"score_greedy_before": before["score_greedy"], "end_rate_before": before["end_rate"]}
        found |= {"score_greedy": last["score_greedy"], "end_rate": last["end_rate"]}
        rows.append(("held-out reward, greedy", before["score_greedy"], last["score_greedy"]))
    return found | {"headline": rows}
