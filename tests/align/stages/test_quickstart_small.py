"""The quickstart in miniature: its files and figures are what issue and README promise, whatever the model is worth."""

import json
import shutil

import pytest

from align.recipe import RecipeError, load_recipe
from align.stages import policy_evaluation
from align.stages.chain import run_chain, run_stage
from data_formats.errors import AlignError, MissingFileError
from examples.experiments import controls, estimators, preference_methods, rejection_sampling, reward_modelling, seeds
from tests.ranks import PROCESSES

pytestmark = pytest.mark.slow  # every test stands on one whole chain

SIZES = {
    "model.architecture": {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    "tinyworld": {"documents": 300, "demonstrations": 300, "coarse_comparisons": 48, "comparisons": 48}
    | {"heldout_comparisons": 48, "prompts": 40, "eval_prompts": 20},
    "base": {"max_steps": 40, "batch_size": 16, "micro_batch_size": 16, "warmup_steps": 2, "learning_rate": 0.01},
    "sft": {"max_steps": 60, "batch_size": 16, "micro_batch_size": 16, "warmup_steps": 2, "learning_rate": 0.01}
    | {"eval_num_replies": 4, "max_completion_length": 24},
    "pmp": {"max_steps": 4, "batch_size": 8, "micro_batch_size": 8, "warmup_steps": 1},
    "rm": {"max_steps": 4, "batch_size": 8, "micro_batch_size": 8, "warmup_steps": 1, "reference_size": 16},
    "ppo": {"num_iterations": 2, "rollout_batch_size": 4, "num_mini_batches": 2, "micro_batch_size": 4}
    | {"critic_warmup_steps": 1},
    "ppo.rollout": {"max_completion_length": 24},
    "ppo.evaluation": {"num_samples": 2},
}
NUMBERS = {
    "base": ("heldout_loss", "unigram_entropy"),
    "sft": ("gold", "correct"),
    "pmp": ("accuracy",),
    "rm": ("accuracy", "accuracy_correctness", "accuracy_without_pmp"),
    "ppo": ("gold", "correct", "kl", "entropy"),
    "seconds": ("base", "sft", "pmp", "rm", "ppo"),
}
TRAINING = ("documents", "demonstrations", "coarse_comparisons", "comparisons", "prompts")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("quickstart") / "run"
    changes = [f"{section}.{key}={value}" for section, values in SIZES.items() for key, value in values.items()]
    recipe = load_recipe("quickstart", [f"output_dir={run}", "seed=5", *changes])
    run_chain(recipe)
    return recipe, run, json.loads((run / "summary.json").read_text(encoding="utf-8"))


def test_the_summary_holds_every_figure_that_is_promised(finished):
    _, _, summary = finished
    for section, keys in NUMBERS.items():
        for key in keys:
            assert type(summary[section].get(key)) is float, f"{section}.{key}"
    for key in ("win", "tie", "loss", "win_sampled", "tie_sampled", "loss_sampled"):
        assert type(summary["ppo"][key]) is int, key
    low, high = summary["gold_range"]
    assert (type(low), type(high)) == (float, float) and low < high
    assert (type(summary["seed"]), summary["seed"]) == (int, 5)
    for section in ("sft", "ppo"):
        assert low <= summary[section]["gold"] <= high and 0 <= summary[section]["correct"] <= 1
    assert 0 < summary["ppo"]["entropy"] < 6.0  # log 400
    assert summary["sft"]["gold_sampled"] != 0  # the model says something that can be judged


def test_the_figures_follow_from_the_lines_of_the_evaluation(finished):
    recipe, run, summary = finished
    rows = lines(run / "ppo" / "eval.jsonl")
    asked = [row["prompt"][-1]["content"] for row in lines(run / "world" / "eval_prompts.jsonl")]
    assert [row["prompt"] for row in rows] == asked and len(asked) == recipe.tinyworld.eval_prompts
    assert all(row["category"] and row["sft_reply"] is not None and row["ppo_reply"] is not None for row in rows)
    win = tie = loss = 0
    for row in rows:
        win += row["ppo_gold"] > row["sft_gold"]
        tie += row["ppo_gold"] == row["sft_gold"]
        loss += row["ppo_gold"] < row["sft_gold"]
    assert (win, tie, loss) == tuple(summary["ppo"][key] for key in ("win", "tie", "loss"))
    assert win + tie + loss == 20
    win = tie = loss = 0
    totals = dict.fromkeys(("sft_gold", "sft_correct", "ppo_gold", "ppo_correct"), 0.0)
    for row in rows:
        for number in (0, 1):
            before, after = row["sampled"]["sft"][number], row["sampled"]["ppo"][number]
            win += after["gold"] > before["gold"]
            tie += after["gold"] == before["gold"]
            loss += after["gold"] < before["gold"]
            for policy, reply in (("sft", before), ("ppo", after)):
                totals[f"{policy}_gold"] += reply["gold"]
                totals[f"{policy}_correct"] += reply["correct"]
        assert len(row["sampled"]["sft"]) == len(row["sampled"]["ppo"]) == 2
    assert (win, tie, loss) == tuple(summary["ppo"][f"{key}_sampled"] for key in ("win", "tie", "loss"))
    for policy in ("sft", "ppo"):
        for key in ("gold", "correct"):
            greedy = sum(row[f"{policy}_{key}"] for row in rows) / 20
            assert summary[policy][key] == pytest.approx(greedy, abs=1e-12), f"{policy}.{key}"
            assert summary[policy][f"{key}_sampled"] == pytest.approx(totals[f"{policy}_{key}"] / 40, abs=1e-12)


def test_no_evaluation_prompt_occurs_in_a_training_file(finished):
    recipe, run, _ = finished
    world = run / "world"
    asked = {row["prompt"][-1]["content"] for row in lines(world / "eval_prompts.jsonl")}
    assert len(asked) == 20
    written = {path.stem for path in world.glob("*.jsonl")}
    assert written == {*TRAINING, "heldout_comparisons", "eval_prompts"}
    for name in written - {"eval_prompts"}:
        rows = lines(world / f"{name}.jsonl")
        assert len(rows) == getattr(recipe.tinyworld, name)
        everything = "\n".join(text for row in rows for text in strings(row))
        assert everything and not [text for text in asked if text in everything], name
    trained = {text for row in lines(world / "comparisons.jsonl") for text in questions(row)}
    held_out = {text for row in lines(world / "heldout_comparisons.jsonl") for text in questions(row)}
    assert trained and held_out and not trained & held_out


def strings(value):
    """Every string in a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def questions(pair):
    return [turn["content"] for turn in pair["prompt"] if turn["role"] == "user"]


def test_half_of_the_replies_in_the_comparisons_are_sampled(finished):
    _, run, _ = finished
    for name in ("comparisons", "heldout_comparisons"):
        info = json.loads((run / "world" / f"{name}.info.json").read_text(encoding="utf-8"))
        assert (info["pairs"], info["sampled_share"] >= 0.5) == (48, True)
        tagged = ["correctness" in row.get("tags", []) for row in lines(run / "world" / f"{name}.jsonl")]
        assert info["correctness_share"] == sum(tagged) / 48 > 0.25


def test_the_controls_run_on_it(finished):
    recipe, run, summary = finished
    found = controls.run_controls(recipe)
    written = (run / "controls" / "summary.json").read_text(encoding="utf-8")
    assert json.loads(json.dumps(found)) == json.loads(written)
    assert {"pmp", "good_demonstrations", "best_of_n", "shuffled_labels", "seed"} <= set(found)
    own = f"{recipe.rm.learning_rate:g}"
    assert found["pmp"]["accuracy"]["with_pmp"][own] == pytest.approx(summary["rm"]["accuracy"])
    best = [max(row["sampled"]["sft"], key=lambda reply: reply["reward"]) for row in lines(run / "ppo/eval.jsonl")]
    assert found["best_of_n"]["n"] == 2
    assert found["best_of_n"]["gold"] == pytest.approx(sum(reply["gold"] for reply in best) / 20)
    assert not (run / "rm_shuffled").exists() and (run / "controls" / "ppo_shuffled" / "eval.jsonl").is_file()
    controls.print_table(recipe, found)
    with pytest.raises(AlignError, match="seed"):
        controls.require_finished(recipe.model_copy(update={"seed": 6}))


def test_the_tables_of_the_readme(finished, capsys):
    recipe, run, summary = finished
    controls.run_controls(recipe)  # finds what is there
    seeds.show([run, run])
    chain, categories, beside = capsys.readouterr().out.strip().split("\n\n")
    assert chain.splitlines()[0] == "|  | seed 5 | seed 5 |"
    assert f"| rm: accuracy | {100 * summary['rm']['accuracy']:.1f} % |" in chain
    assert len(categories.splitlines()) == 2 + 2 * len(summary["ppo"]["by_category"])
    counts = summary["ppo"]["by_category"]["coding"]
    assert f"| coding, greedy | {counts['win']} / {counts['tie']} / {counts['loss']} |" in categories
    assert "PPO on shuffled labels" in beside
    with pytest.raises(MissingFileError, match=r"summary\.json does not exist"):
        seeds.show([run, run / "nowhere"])


def test_the_tables_of_the_readme_of_another_run_are_one_sentence(finished, tmp_path, capsys):
    whole = finished[2]
    strange = ": is not the summary of a finished quickstart (it"
    other = [
        ({key: value for key, value in whole.items() if key != "base"}, f"{strange} lacks 'base'"),
        (whole | {"ppo": whole["ppo"] | {"gold": None}}, f"{strange} cannot be read as one"),
        (whole | {"ppo": whole["ppo"] | {"by_category": {}}}, f"{strange} lacks 'coding'"),
        ([whole], " is not a whole JSON object: run"),
    ]
    for text, words in [
        *((json.dumps(data), words) for data, words in other),
        ("{", " is not a whole JSON object: run"),
    ]:
        (tmp_path / "summary.json").write_text(text)
        assert seeds.main([str(finished[1]), str(tmp_path)]) == 1
        said = capsys.readouterr()
        (line,) = said.err.splitlines()
        assert line.startswith(f"error: {tmp_path}/summary.json{words}")
        assert said.out == ""


def test_the_arms_of_rejection_sampling_run_on_it(finished):
    _, run, summary = finished
    settings = rejection_sampling.Settings(
        prompts=12, counts=(2, 4), rounds=2, count=4, steps=2, learning_rate=1e-3, ppo_iterations=1
    )
    found = rejection_sampling.run_arms(run, settings)
    assert list(found["arms"]) == ["sft", "k4", "k2", "rounds", "rounds_newest_only", "ppo", "rounds_then_ppo"]
    for arm, figures in found["arms"].items():
        names = {"gold", "correct", "reward", "distinct"}
        assert names | {f"{name}_sampled" for name in names} <= figures.keys(), arm
    for arm in ("sft", "ppo"):
        assert found["arms"][arm]["gold"] == pytest.approx(summary[arm]["gold"], abs=1e-12)
    assert [row["k"] for row in found["by_k"]] == [1, 2, 4]
    out = run / rejection_sampling.FOLDER
    four, two = (lines(out / f"k{count}/rounds/1/samples.jsonl") for count in (4, 2))
    assert [row["replies"][:2] for row in four] == [row["replies"] for row in two] and len(two) == 12
    for name in ("samples", "demonstrations"):
        first = (out / f"k4/rounds/1/{name}.jsonl").read_bytes()
        assert first == (out / f"rounds/rounds/1/{name}.jsonl").read_bytes()
    assert lines(out / "rounds/rounds/2/samples.jsonl") == lines(out / "rounds_newest_only/rounds/2/samples.jsonl")
    assert {row["round"] for row in lines(out / "rounds_newest_only/rounds/2/demonstrations.jsonl")} == {2}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert rejection_sampling.run_arms(run, settings) == found
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RecipeError, match="holds arms of other settings; remove"):
        rejection_sampling.run_arms(run, rejection_sampling.Settings(prompts=13))


def test_the_arms_of_reward_modelling_run_on_it(finished, monkeypatch):
    _, run, _ = finished
    monkeypatch.setattr(reward_modelling, "CLEAN", 80)
    monkeypatch.setattr(reward_modelling, "CROWD", 10)
    brief = {"max_steps": 2}
    arms = [
        reward_modelling.Arm("plain", "plain", limit=16, changes=brief),
        reward_modelling.Arm("margin", "margin", "pmp", "annotated", 16, brief | {"margin": "small"}),
        reward_modelling.Arm("edited", "edited", "plain", "edited", None, brief),
    ]
    reward_modelling.train_all(run, arms)
    data = run / reward_modelling.FOLDER / "data"
    clean, annotated, edited = (lines(data / f"{name}.jsonl") for name in ("clean", "annotated", "edited"))
    assert len(clean) == len(annotated) == 80 and len(lines(data / "crowd_heldout.jsonl")) == 10
    assert [reward_modelling.grade(row["grade"]) for row in clean] == [row["grade"] for row in annotated]
    flipped = [a["chosen"] == b["rejected"] for a, b in zip(clean, annotated, strict=True)]
    assert 0 < sum(flipped) < 20
    assert min(row["grade"] for row in edited) >= 3 and len(edited) > len(lines(data / "strong.jsonl"))
    found = reward_modelling.read(run / reward_modelling.FOLDER / "plain")
    assert len(found["clean"]) == 48 and len(found["crowd"]) == 10
    before = {path: path.stat().st_mtime_ns for path in data.parent.rglob("*") if path.is_file()}
    reward_modelling.train_all(run, arms)
    assert before == {path: path.stat().st_mtime_ns for path in data.parent.rglob("*") if path.is_file()}
    assert reward_modelling.read_table(arms, [run]).count("\n") == 4


def test_the_stage_is_judged_by_the_gold_score_that_it_did_not_see(finished):
    recipe, run, summary = finished
    settings = rejection_sampling.Settings(prompts=12, steps=2)
    section = rejection_sampling.section(recipe, settings, 4).model_copy(update={"eval_data": recipe.ppo.eval_data})
    found = run_stage(recipe.model_copy(update={"rejection": section, "ppo": None}), "rejection")
    rows = lines(run / "rejection/eval.jsonl")
    assert found["judge"] == "gold" and len(rows) == 20
    assert found["gold"] == pytest.approx(sum(row["rejection_gold"] for row in rows) / 20, abs=1e-12)
    assert summary["sft"]["gold"] == pytest.approx(sum(row["sft_gold"] for row in rows) / 20, abs=1e-12)
    measured = {row[0]: row for row in found["headline"]}
    assert measured["gold, greedy"][1:] == [summary["sft"]["gold"], found["gold"]]
    assert measured["held-out reward, greedy"][2] == found["score_greedy"]


@pytest.mark.needs("trl")
def test_dpo_is_judged_by_it_on_the_prompts_of_held_out_pairs(finished):
    recipe, run, _ = finished
    section = preference_methods.dpo_section(recipe, preference_methods.Tuning())
    section = section.model_copy(update={"max_steps": 3, "eval_num_replies": 6, "max_completion_length": 24})
    found = run_stage(recipe.model_copy(update={"dpo": section, "ppo": None}), "dpo")
    rows = lines(run / "dpo/replies.jsonl")
    asked = [row["prompt"][-1]["content"] for row in lines(run / "world/heldout_comparisons.jsonl")]
    assert [row["prompt"] for row in rows] == list(dict.fromkeys(asked))[:6] and found["judge"] == "gold"
    assert found["gold"] == pytest.approx(sum(row["dpo_gold"] for row in rows) / 6, abs=1e-12)
    assert {"sft_rm", "dpo_rm", "sft_correct"} <= rows[0].keys() and found["kl"] != 0


def test_sft_is_judged_though_what_ppo_starts_from_is_not_trained_yet(finished, tmp_path):
    recipe, run, summary = finished
    for name in ("sft", "world"):
        shutil.copytree(run / name, tmp_path / name)
    section = rejection_sampling.section(recipe, rejection_sampling.Settings(prompts=12, steps=2), 4)
    longer = recipe.model_copy(update={"rejection": section, "output_dir": str(tmp_path)})
    assert policy_evaluation.evaluate_sft(longer, "sft", {})["gold"] == summary["sft"]["gold"]


def test_the_study_of_the_estimators_goes_on_where_it_was(finished, tmp_path, capsys):
    _, folder, _ = finished
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    ask = [str(folder), "--out", str(tmp_path), "--only", "rloo", "reinforce_pp"]
    assert estimators.main(ask) == 0
    table = capsys.readouterr().out[-1000:].partition("| advantage |")[2]
    assert [line.split()[1] for line in table.splitlines()[2:]] == ["rloo", "reinforce_pp"]
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before
    made = json.loads((tmp_path / "seed5" / "rloo" / "outcome.json").read_text())
    assert made["optimizer_steps"] == 4 and made["judge"] == "gold" and not (tmp_path / "seed5/rloo/critic").exists()
    shutil.rmtree(tmp_path / "seed5" / "rloo" / "checkpoints", ignore_errors=True)
    assert estimators.main(ask) == 0  # from what lies there
    assert capsys.readouterr().out.partition("| advantage |")[2] == table


@pytest.mark.needs("trl")
def test_the_study_of_preference_methods_goes_on_where_it_was(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(preference_methods, "PROCESSES", PROCESSES)  # new ones that have imported everything
    _, folder, summary = finished
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    arms = ["dpo", "dpo_sampled", "rejection", "ppo"]
    ask = [str(folder), "--out", str(tmp_path), "--only", *arms]
    assert preference_methods.main(ask) == 0
    printed = capsys.readouterr().out

    def folder_of(name):
        return getattr(preference_methods.MAKERS.get(name, (None, None))[1], "name", name)

    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before
    made = {name: json.loads((tmp_path / "seed5" / folder_of(name) / "outcome.json").read_text()) for name in arms}
    assert {one["before"]["gold"] for one in made.values()} == {summary["sft"]["gold"]}
    assert made["ppo"]["gold"] == pytest.approx(summary["ppo"]["gold"], abs=1e-12) and not made["ppo"]["cost"]
    assert made["dpo"]["rows"] == 48 and made["dpo_sampled"]["cost"]["sampling"]["cpu_seconds"] > 0
    shared = lines(tmp_path / "seed5/candidates_rm/rounds/1/samples.jsonl")
    assert (
        len(shared) == 2 * 4 * 2 // preference_methods.COUNT
        and lines(tmp_path / "seed5/rejection/rounds/1/samples.jsonl") == shared
    )
    assert preference_methods.main(ask) == 0  # from what lies there
    table = printed[printed.index("| arm | gold") :]
    assert capsys.readouterr().out[-len(table) :] == table
