"""Going round on a tiny model: what each round is made of, what a stop leaves, what is done anew."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest

from align import cli
from align.feedback import collect as collect_room
from align.feedback import judge as judge_room
from align.feedback import rounds as room
from align.feedback.items import load_items
from align.feedback.judgments import HumanJudgment, append
from align.feedback.round_evaluation import trained_on
from align.feedback.rounds import WaitsForPeople, run_rounds
from align.models.named import policy_at, reward_at
from align.recipe import RecipeError, dump_recipe, load_recipe
from align.report.build import build_report
from align.runtime.pieces import Pieces
from align.stages import candidates, redo, run_rejection, run_reward
from align.stages.recipe_guard import RecipeChangedError
from data_formats.errors import EmptyDatasetError
from tests.align.feedback.rounds_case import DPO, lines, small_rounds, write


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    recipe = small_rounds(tmp_path_factory.mktemp("rounds"))
    return recipe, Path(recipe.output_dir), run_rounds(recipe)


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def again(finished, tmp_path, **changes):
    """The finished run as a run of its own, and its recipe with these sections."""
    recipe, run, _ = finished
    folder = tmp_path / "case"
    shutil.copytree(run.parent, folder, ignore=lambda *_: [".locks"])
    text = dump_recipe(recipe).replace(str(run.parent), str(folder))
    for file in folder.rglob("recipe.yaml"):  # as if it had run here
        file.write_text(file.read_text().replace(str(run.parent), str(folder)))
    (folder / "recipe.yaml").write_text(text)
    return load_recipe(folder / "recipe.yaml", [f"{key}={value}" for key, value in changes.items()])


def weights(run):
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*.safetensors"))}


def kept(run):
    """All that a run says, without what a clock does."""
    found = {}
    for file in sorted([*run.rglob("pairs.jsonl"), *run.rglob("samples.jsonl"), *run.glob("evaluation/*/*.jsonl")]):
        found[str(file.relative_to(run))] = file.read_text().replace(str(run.parent), "")
    rows = read(run / "summary.json")["rounds"]
    return found | {"rounds": json.dumps(rows).replace(str(run.parent), "")}


def test_a_round_collects_from_the_last_two_policies_and_starts_from_the_newest(finished):
    _, run, summary = finished
    sources = [
        {reply.source for item in load_items(run / f"round-{number}/feedback/items.jsonl") for reply in item.replies}
        for number in (1, 2)
    ]
    assert sources == [{"run/sft"}, {"run/sft", "round-1/rejection"}]
    for number, start in ((1, "sft"), (2, "round-1/rejection")):
        items = load_items(run / f"round-{number}/feedback/items.jsonl")
        assert {item.round for item in items} == {number}
        assert {reply.sampling["temperature"] for item in items for reply in item.replies} == {1.0, 1.2}
        stage = read(run / f"round-{number}/rejection/summary.json")
        assert stage["origins"]["policy"] == {"kind": "path", "value": str(run / start / "model")}
        assert stage["origins"]["reward"] == {"kind": "stage", "value": "rm"}
    assert policy_at(run) == str(run / "round-2/rejection/model")
    assert reward_at(run) == str(run / "round-2/rm/model")
    assert [row["policy"] for row in summary["rounds"]] == [
        str(run / place / "model") for place in ("sft", "round-1/rejection", "round-2/rejection")
    ]


def test_the_reward_model_has_all_rounds_comparisons_beside_its_own(finished):
    _, run, summary = finished
    judged = [len(lines(run / f"round-{number}/feedback/pairs.jsonl")) for number in (1, 2)]
    assert min(judged) > 0
    for number in (1, 2):
        found = read(run / f"round-{number}/rm/summary.json")
        assert found["rows"] + found["pairs"] == 8 + sum(judged[:number])
        row = summary["rounds"][number]
        assert (row["comparisons"], row["all_comparisons"]) == (judged[number - 1], sum(judged[:number]))
        assert row["rm"]["accuracy"] == found["accuracy"]


def test_rejection_keeps_the_best_of_all_rounds_by_the_newest_reward(finished):
    _, run, _ = finished
    stage = run / "round-2/rejection/rounds"
    earlier, now = lines(stage / "0/earlier.jsonl"), lines(stage / "1/samples.jsonl")
    first = lines(run / "round-1/rejection/rounds/1/samples.jsonl")
    ended = [{one["content"]: one["score"] for one in row["replies"] if one["stop"] == "end"} for row in first]
    assert [{one["content"] for one in row["replies"]} for row in earlier] == [set(row) for row in ended]
    rescored = [(ended[at][one["content"]], one["score"]) for at, row in enumerate(earlier) for one in row["replies"]]
    assert rescored and all(before != after for before, after in rescored)  # by another reward model
    best = {}
    for row in [*earlier, *now]:
        for one in row["replies"]:
            if one["stop"] == "end" and one["content"].strip():
                asked = row["prompt"][-1]["content"]
                best[asked] = max(best.get(asked, one["score"]), one["score"])
    kept = {row["messages"][0]["content"]: row["score"] for row in lines(stage / "1/demonstrations.jsonl")}
    assert kept == best and len(best) > 0
    assert {row["round"] for row in lines(stage / "1/demonstrations.jsonl")} <= {0, 1}


def test_rounds_are_held_against_the_one_before_and_the_start(finished):
    _, run, summary = finished
    last = summary["rounds"][2]
    for what, other in (("before", "round-1"), ("start", "start")):
        wins = last["wins"]["judge"][what]
        assert (wins["first"], wins["second"], wins["judgments"]) == (other, "round-2", 3)
        sides = [lines(run / f"evaluation/replies/{name}.greedy.jsonl") for name in (other, "round-2")]
        letters = [[len(set(row["completion"])) for row in side] for side in sides]
        assert wins["win"] == sum(after > before for before, after in zip(*letters, strict=True))
    own = last["rm_on_own"]["judge"]
    said = lines(run / "evaluation/judgments/judge.own.round-2.jsonl")
    decided = sum(row["judgments"][0]["winner"] != "tie" for row in said)
    assert own["after"]["pairs"] == decided and own["after"]["undecided"] == 3 - decided
    assert summary["rounds"][0] == {"round": 0, "policy": str(run / "sft/model")}
    page = build_report(run).read_text(encoding="utf-8")
    assert '<a href="../round-2/report/index.html">round 2</a>' in page and "against the round before" in page


def test_the_same_command_changes_nothing(finished, capsys):
    recipe, run, summary = finished
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.jsonl")}
    assert run_rounds(recipe) == summary
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*.jsonl")} == before
    said = capsys.readouterr().out
    assert said.count("finished before") == 5 and "round  comparisons" in said
    last = summary["rounds"][2]
    assert f"{last['comparisons']} of {last['all_comparisons']} " in said


def test_a_run_that_was_moved_is_the_same_run(finished, tmp_path, capsys):
    recipe, run, _ = finished
    shutil.copytree(run, tmp_path / "moved", ignore=lambda *_: [".locks"])
    before = weights(tmp_path / "moved")
    run_rounds(recipe.model_copy(update={"output_dir": str(tmp_path / "moved")}))
    assert weights(tmp_path / "moved") == before and capsys.readouterr().out.count("finished before") == 5


@pytest.mark.slow
def test_killed_at_every_border_is_never_having_stopped(finished, tmp_path, monkeypatch):
    _, run, _ = finished
    recipe = small_rounds(tmp_path, "run")
    borders = (  # in the order in which a run comes to them: killed at the first or second call, or (0) after the first
        (room, "_prepare", 1),
        (Pieces, "make", 2),
        (judge_room, "_strengths", 1),
        (room, "write_pairs", 1),
        (room, "write_pairs", 0),
        (run_reward, "held_out", 1),
        (run_rejection, "put_model", 1),
        (room, "evaluate_round", 2),
        (collect_room, "_items", 1),
        (candidates, "_sampled_before", 1),
        (room, "_finish", 1),
    )
    for place, name, at in borders:
        real, calls = getattr(place, name), []

        def dies(*args, real=real, calls=calls, at=at, **kwargs):
            calls.append(1)
            done = real(*args, **kwargs) if len(calls) != at else None
            if len(calls) >= at:
                raise SystemExit("killed")
            return done

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(place, name, dies)
            run_rounds(recipe)
    run_rounds(recipe)
    assert weights(tmp_path / "run") == weights(run)
    assert kept(tmp_path / "run") == kept(run)


@pytest.mark.slow
def test_people_judge_and_the_same_command_goes_on(tmp_path, capsys):
    recipe = small_rounds(tmp_path, rounds={"num_rounds": 1, "judge": "people"}, sft=None)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    command = ["run", str(tmp_path / "recipe.yaml")]
    assert cli.main(command) == 130
    folder = tmp_path / "run/round-1/feedback"
    told = capsys.readouterr().err
    assert f"round 1 waits for people, who have judged 0 of 8 items: `align annotate {folder}/items.jsonl`" in told
    assert f"Continue with: align run {tmp_path / 'recipe.yaml'}" in told
    items = load_items(folder / "items.jsonl")
    for at, item in enumerate(items):
        names = [reply.id for reply in item.replies]
        ranking = tuple((name,) for name in names)
        row = {"id": str(uuid.uuid4()), "item": item.id, "annotator": "anna", "shown": names, "ranking": ranking}
        append(folder / "judgments.jsonl", HumanJudgment(**row))
        if at == 0:
            with pytest.raises(WaitsForPeople, match="judged 1 of 8 items"):
                run_rounds(recipe)
    assert cli.main(command) == 0
    pairs = lines(folder / "pairs.jsonl")
    capsys.readouterr()
    append(folder / "judgments.jsonl", HumanJudgment(**row | {"id": str(uuid.uuid4()), "annotator": "ben"}))
    assert cli.main(command) == 0
    assert "round 1: 1 judgments or undos came after" in (told := capsys.readouterr().out)
    assert "--fresh round-1/rm makes" in told and lines(folder / "pairs.jsonl") == pairs
    run_rounds(recipe, start="round-1/rm")
    assert {name for pair in lines(folder / "pairs.jsonl") for name in pair["provenance"]["annotators"]} == {
        "anna",
        "ben",
    }
    assert "came after" not in capsys.readouterr().out
    assert {pair["provenance"]["annotators"][0] for pair in pairs} == {"anna"}
    assert (tmp_path / "run/round-1/rejection/summary.json").is_file()
    with pytest.raises(redo.NotConfirmedError, match="9 judgments of people"):  # nobody to ask
        run_rounds(recipe, fresh=["round-1"])
    assert len(lines(folder / "judgments.jsonl")) == 9
    with pytest.raises(WaitsForPeople):
        run_rounds(recipe, fresh=["round-1"], yes=True)
    assert not (folder / "judgments.jsonl").exists() and not (tmp_path / "run/round-1/rejection").exists()


def test_what_was_said_of_items_is_removed_before_them_and_they_before_the_notes(tmp_path, monkeypatch):
    recipe, gone = small_rounds(tmp_path, rounds={"num_rounds": 1, "judge": "people"}, sft=None), []
    folder = tmp_path / "run/round-1/feedback"
    folder.mkdir(parents=True)
    names = ["recipe.yaml", "summary.json", "items.jsonl", "judgments.jsonl", "pairs.jsonl", "merged.json"]
    for name in names:
        (folder / name).write_text("{}")
    real = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **how: gone.append(path) or real(path, **how))
    room._clear(recipe, 1)
    assert not (tmp_path / "run/round-1").exists()
    *said, items, summary, notes = [
        name for name in [one.name for one in gone if one.parent == folder] if name in names
    ]
    assert {*said} == {"merged.json", "pairs.jsonl", "judgments.jsonl"} and items == "items.jsonl"
    assert (summary, notes) == ("summary.json", "recipe.yaml")


def test_what_a_judge_leaves_open_is_told(tmp_path, capsys):
    (tmp_path / "mute.py").write_text("def mute(prompts, first, second):\n    return [None for _ in first]\n")
    judge = {"kind": "comparison", "function": f"{tmp_path}/mute.py:mute"}
    with pytest.raises(EmptyDatasetError):
        run_rounds(small_rounds(tmp_path, rounds={"num_rounds": 1, "judge": judge}, sft=None))
    assert "round 1: of 8 items not judged: 8 no verdict of judge" in capsys.readouterr().err


def test_held_out_prompts_that_are_learnt_on_are_told(tmp_path):
    assert trained_on(small_rounds(tmp_path)) == ""
    write(tmp_path / "held.jsonl", [{"prompt": "say a"}, {"prompt": "now x"}])
    assert "of 2 prompts 1 in collect.data, 1 in rejection.data" in trained_on(small_rounds(tmp_path))


@pytest.mark.slow
@pytest.mark.needs("trl")
def test_dpo_has_the_newest_rounds_comparisons_alone(tmp_path):
    recipe = small_rounds(tmp_path, rejection=None, rm=None, sft=None, dpo=DPO)
    own = lines(tmp_path / "comparisons.jsonl")
    write(tmp_path / "comparisons.jsonl", [row | {"round": 7} for row in own])  # of another run: not newer
    run_rounds(recipe)
    run = tmp_path / "run"
    judged = [len(lines(run / f"round-{number}/feedback/pairs.jsonl")) for number in (1, 2)]
    found = [read(run / f"round-{number}/dpo/summary.json") for number in (1, 2)]
    assert [one["rows"] for one in found] == judged
    assert found[1]["origin"] == {"kind": "path", "value": str(run / "round-1/dpo/model")}


@pytest.mark.slow
def test_a_changed_key_starts_its_round_and_those_after_it_anew(finished, tmp_path, capsys):
    recipe = again(finished, tmp_path, **{"rejection.learning_rate": 0.02})
    run = Path(recipe.output_dir)
    before, pairs = weights(run), (run / "round-1/feedback/pairs.jsonl").read_bytes()
    run_rounds(recipe)
    said = capsys.readouterr().out
    assert "rejection: starts anew (rejection.learning_rate was 0.01, is 0.02)" in said
    assert "round 1 runs; removed what was made from it: round 2" in said
    after = weights(run)
    same = {place for place in before if before[place] == after[place]}
    assert {"sft/model/model.safetensors", "round-1/rm/model/model.safetensors"} <= same
    assert not same & {f"round-{number}/rejection/model/model.safetensors" for number in (1, 2)}
    assert (run / "round-1/feedback/pairs.jsonl").read_bytes() == pairs


@pytest.mark.slow
def test_what_is_collected_decides_a_round(finished, tmp_path, capsys):
    recipe = again(finished, tmp_path, **{"collect.num_replies": 2})
    run = Path(recipe.output_dir)
    run_rounds(recipe, accept=["collect.num_replies"])
    assert lines(run / "round-2/feedback/items.jsonl")[0]["round"] == 2
    assert "starts anew (collect" not in capsys.readouterr().out
    assert [one["key"] for one in read(run / "round-1/feedback/accepted.json")["changes"]] == ["collect.num_replies"]
    recipe = again(finished, tmp_path / "other", **{"collect.num_replies": 2, "rounds.num_rounds": 1})
    run_rounds(recipe)
    said = capsys.readouterr().out
    assert "round 1: starts anew (collect.num_replies was 3, is 2); removed: round 1, round 2" in said
    run = Path(recipe.output_dir)
    assert {len(row["replies"]) for row in lines(run / "round-1/feedback/items.jsonl")} == {2}
    assert not (run / "round-2").exists()
    with pytest.raises(RecipeChangedError, match="seed was 4, is 5"):
        run_rounds(recipe.model_copy(update={"seed": 5}))
    assert (run / "round-1/rejection/model").is_dir()


@pytest.mark.slow
def test_a_round_or_a_stage_of_it_is_started_anew_by_name(finished, tmp_path, capsys):
    recipe = again(finished, tmp_path, **{"rounds.num_rounds": 3})
    run = Path(recipe.output_dir)
    before = weights(run)
    run_rounds(recipe, fresh=["round-2/rejection"])  # a third round goes on behind it
    assert "round 2" in capsys.readouterr().out
    after = weights(run)
    assert {place: after[place] for place in before} == before  # made again, alike
    assert (run / "round-3/rejection/summary.json").is_file()
    for name, problem in (
        ("rejection", "say which round's, as in round-1/rejection"),
        ("round-4", "the rounds are round-1 to round-3"),
        ("round-1/sft", "a round has rm, rejection; before the rounds run sft"),
    ):
        with pytest.raises(RecipeError, match=problem):
            run_rounds(recipe, fresh=[name])


def test_a_stage_of_the_rounds_does_not_run_by_itself(finished, tmp_path, capsys):
    recipe = again(finished, tmp_path)
    assert cli.run_entry("rejection", [str(tmp_path / "case/recipe.yaml")]) == 1
    assert "'rejection' runs in every round, and `align run RECIPE` goes round" in capsys.readouterr().err
    assert cli.run_entry("rejection", [str(Path(recipe.output_dir) / "round-2/recipe.yaml")]) == 0
    assert "rejection: finished before" in capsys.readouterr().out
    assert cli.main(["collect", str(tmp_path / "case/recipe.yaml")]) == 1
    assert "'newest' is a policy of a round" in capsys.readouterr().err


def test_what_a_recipe_with_rounds_lacks_is_said(tmp_path):
    whole = dump_recipe(small_rounds(tmp_path))
    (tmp_path / "recipe.yaml").write_text(whole)

    def problems(*overrides):
        with pytest.raises(RecipeError) as told:
            cli_check(tmp_path / "recipe.yaml", overrides)
        return " ".join(told.value.problems)

    assert "rounds: needs the section 'collect'" in problems("collect=null")
    letters = f"rejection.reward=[{{kind: function, function: {tmp_path}/code.py:letters}}]"
    assert "needs a stage that learns from what is judged: rm, dpo" in problems("rm=null", letters)
    assert "did you mean 'newest'?" in problems("collect.sources=[{model: newst}]")
    assert "a stage starts from the newest unasked" in problems("rejection.init_from=newest")
    assert "rounds: needs a stage that trains the policy" in problems("rejection=null")
    assert "'rejection' runs in every round; say newest or before" in problems("collect.sources=[{model: rejection}]")
    assert "'newest' is said where a recipe has 'rounds'" in problems("rounds=null")
    assert "there is no package 'nothing'" in problems("rounds.judge={kind: comparison, function: nothing.x:y}")
    assert "is made anew in every round" in problems("rounds.judge={kind: model, model_from: rm}")
    assert "leave the weight out" in problems("rm.data=[{path: comparisons.jsonl, weight: 1}]")
    assert "keep_earlier: false leaves out" in problems("rejection.keep_earlier=false", "rejection.earlier_from=[x]")


def cli_check(path, overrides):
    from align.recipe.check import check_recipe

    return check_recipe(path, list(overrides))
