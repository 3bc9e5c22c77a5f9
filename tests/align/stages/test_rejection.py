"""Rejection sampling: what is kept, exactly; and that a run which was stopped ends as one that was not."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from align.runtime import files
from align.stages import best_replies, candidates, run_rejection
from align.stages.candidates import Sampler
from align.stages.clean import clear_stages
from align.stages.recipe_guard import RecipeChangedError, is_begun
from data_formats import read
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.records import Demonstration, Scored
from examples.experiments.controls import require_unchanged
from reward.protocol import RewardError
from rollouts.scripted import ScriptedEngine
from tests.align.stages.rejection_case import recipe
from tests.tiny_models import byte_tokenizer

TABLE = {  # prompt -> replies of round 1, of round 2; "!" marks the cut ones
    "a": (["2", "5", "5.0"], ["4", "1", "3"]),
    "b": (["6", "", "1"], ["6.0", "9999!", "0"]),
    "c": (["1", "0", "-1"], ["0", "2", "8"]),
    "d": (["7777!", "8888!", ""], ["3", "2", "1"]),
    "e": (["7777!", "", "8888!"], ["", "", "7777!"]),
    "f": (["-9", "-8", "-7"], ["-6", "-5", "-4"]),
}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scripted(monkeypatch, folder):
    """The engine says what TABLE tells it, the reward is the number that a reply is (99 for none)."""
    tokenizer = byte_tokenizer()

    def make_engine(kind, model, **options):
        later = "rounds" in model.config._name_or_path

        def script(prompt, number):
            letter = tokenizer.decode(prompt).split("say ")[-1][:1]
            text = TABLE[letter][later][number] if letter in TABLE else "0"
            end = [] if text.endswith("!") else [258]
            return [*tokenizer.encode(text.rstrip("!")), *end]

        return ScriptedEngine(script)

    monkeypatch.setattr("align.trainers.engines.make_engine", make_engine)
    (folder / "number.py").write_text(
        "def number(prompts, completions):\n    return [float(text or 99) for text in completions]\n"
    )
    rollout = {"num_generations": 3, "max_prompt_length": 60, "max_completion_length": 4, "batch_size": 16}
    return {"reward": {"kind": "function", "function": f"{folder}/number.py:number"}, "rollout": rollout}


def kept(folder, number):
    rows = lines(folder / "run/rejection/rounds" / str(number) / "demonstrations.jsonl")
    return {
        row["messages"][-2]["content"][-1]: (row["messages"][-1]["content"], row["score"], row["round"]) for row in rows
    }


@pytest.mark.parametrize(
    ("keys", "second"),
    [
        ({}, {"a": ("5", 5, 1), "b": ("6", 6, 1), "c": ("8", 8, 2), "d": ("3", 3, 2), "f": ("-4", -4, 2)}),
        pytest.param(
            {"threshold": 5.0}, {"a": ("5", 5, 1), "b": ("6", 6, 1), "c": ("8", 8, 2)}, marks=pytest.mark.slow
        ),
        (
            {"keep_earlier": False},
            {"a": ("4", 4, 2), "b": ("6.0", 6, 2), "c": ("8", 8, 2), "d": ("3", 3, 2), "f": ("-4", -4, 2)},
        ),
    ],
)
def test_the_first_of_the_best_is_kept(tmp_path, monkeypatch, keys, second):
    recipe(tmp_path)
    changes = scripted(monkeypatch, tmp_path) | {"max_steps": 1, "save_steps": None} | keys
    summary = run_rejection.run_rejection(recipe(tmp_path, **changes))
    first = {"a": ("5", 5, 1), "b": ("6", 6, 1), "c": ("1", 1, 1), "f": ("-7", -7, 1)}
    if "threshold" in keys:
        first = {"a": ("5", 5, 1), "b": ("6", 6, 1)}
    assert kept(tmp_path, 1) == first and kept(tmp_path, 2) == second
    one, two = summary["rounds"]
    assert (one["kept"], two["kept"]) == (len(first), len(second))
    assert one["no_reply_ended"] == 2 and one["replies_cut"] == 4 and one["replies_without_end"] == 0
    assert two["no_reply_ended"] == 1
    assert (one["below_threshold"], two["below_threshold"]) == ((2, 2) if "threshold" in keys else (0, 0))
    assert two["kept_from_earlier"] == sum(number == 1 for _, _, number in second.values())
    everything = [number(text) for replies, _ in TABLE.values() for text in replies]
    assert one["score_single"] == pytest.approx(sum(everything) / len(everything), abs=1e-12)
    highest = [max(map(number, replies)) for replies, _ in TABLE.values()]
    assert one["score_best"] == pytest.approx(sum(highest) / len(highest), abs=1e-12)
    assert [row["k"] for row in one["by_k"]] == [1, 2, 3]


def number(text):
    return float(text.rstrip("!") or 99)


def test_what_is_written_can_be_read_as_data_and_prompts_that_are_too_long_are_counted(tmp_path, monkeypatch):
    recipe(tmp_path)
    with open(tmp_path / "prompts.jsonl", "a") as file:
        file.write(json.dumps({"prompt": "say " + "g" * 60}) + "\n")
    changes = scripted(monkeypatch, tmp_path) | {"max_steps": 1, "num_rounds": 1}
    summary = run_rejection.run_rejection(recipe(tmp_path, **changes))
    assert summary["prompts"] == 6 and summary["dropped_rows"] == {"longer than max_prompt_length": 1}
    folder = tmp_path / "run/rejection/rounds/1"
    demos = read(folder / "demonstrations.jsonl", Demonstration)
    assert demos.report.format == "messages" and len(demos.records) == 4 and not demos.report.dropped
    assert [demo.category for demo in demos.records] == ["say", "say", "say", "tell"]
    assert [demo.source for demo in demos.records] == ["prompts.jsonl"] * 4
    scored = read(folder / "samples.jsonl", Scored).records
    assert [reply.score for reply in scored[0].replies] == [2.0, 5.0, 5.0]
    row = lines(folder / "samples.jsonl")[1]
    assert [(one["content"], one["stop"], one["tokens"]) for one in row["replies"]] == [
        ("6", "end", 2),
        ("", "end", 1),
        ("1", "end", 2),
    ]


def test_the_parts_of_a_reward_are_kept_apart(tmp_path, monkeypatch):
    recipe(tmp_path)
    changes = scripted(monkeypatch, tmp_path) | {"max_steps": 1, "num_rounds": 1}
    changes["reward"] = [changes["reward"] | {"weight": 1.0}, {"kind": "length", "maximum": 1, "weight": 0.5}]
    run_rejection.run_rejection(recipe(tmp_path, **changes))
    first = lines(tmp_path / "run/rejection/rounds/1/samples.jsonl")[0]["replies"]
    assert [(one["score"], one["parts"]) for one in first] == [
        (2.5, {"function": 2.0, "length": 1.0}),
        (5.5, {"function": 5.0, "length": 1.0}),
        (5.0, {"function": 5.0, "length": 0.0}),
    ]


def test_nothing_kept_is_one_sentence(tmp_path, monkeypatch):
    recipe(tmp_path)
    changes = scripted(monkeypatch, tmp_path)
    with pytest.raises(EmptyDatasetError, match=r"rejection\.threshold: .* best score of all is 6, below .* 6\.5"):
        run_rejection.run_rejection(recipe(tmp_path, threshold=6.5, **changes))
    monkeypatch.setitem(TABLE, "a", (["7777!"] * 3,) * 2)
    for letter in "bcdef":
        monkeypatch.setitem(TABLE, letter, TABLE["a"])
    with pytest.raises(EmptyDatasetError, match=r"raise rejection\.rollout\.max_completion_length \(4\)"):
        run_rejection.run_rejection(recipe(tmp_path, run="other", **changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rejection")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(candidates, "BATCHES_A_PIECE", 1)  # two prompts a piece
    summary = run_rejection.run_rejection(recipe(folder))
    yield folder, summary
    monkeypatch.undo()


def test_the_stage_leaves_its_folder_behind(whole):
    folder, summary = whole
    out = folder / "run/rejection"
    assert {path.name for path in out.iterdir()} == {
        *("model", "rounds", "metrics.jsonl", "recipe.yaml", "code.json", "summary.json"),
    }
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["steps"] == 8 and summary["prompts"] == 6 and summary["eval_prompts"] == 3
    for name in ("score_single", "score_best", "score_greedy_before", "score_greedy", "end_rate", "kept_share"):
        assert isinstance(summary[name], float), name
    start, first, second, final = (
        load_file(path / "model.safetensors")
        for path in (folder / "policy", out / "rounds/1/model", out / "rounds/2/model", out / "model")
    )
    assert any(not torch.equal(start[name], first[name]) for name in start)
    assert any(not torch.equal(first[name], second[name]) for name in start)  # the second round starts from the first
    assert all(torch.equal(second[name], final[name]) for name in start)
    assert [line["step"] for line in lines(out / "metrics.jsonl")] == [1, 2]
    mean = sum(row["reward"] for row in lines(out / "rounds/2/heldout.jsonl")) / 3
    assert summary["score_greedy"] == pytest.approx(mean, abs=1e-12)


class Killed(BaseException):
    """As a kill would: nothing that the stage does may catch it."""


@pytest.mark.slow
def test_stopped_in_every_phase_it_ends_as_one_that_was_not(whole, monkeypatch):
    folder, summary = whole
    calls = {"judged": 0, "steps": 0}
    stops = [
        ("judged", 3),  # the second piece of round 1, after the held-out look
        ("steps", 3),  # the first optimizer step after the checkpoint of step 2, round 1
        ("put", "rounds/1/model"),
        ("look", "rounds/1"),
        ("judged", 9),  # in round 2
        ("write", "demonstrations.jsonl"),
        ("put", "rejection/model"),
        ("write", "rejection/summary.json"),
    ]

    def stop(kind, what):
        if stops and stops[0][0] == kind and (stops[0][1] == what or str(what).endswith(str(stops[0][1]))):
            stops.pop(0)
            raise Killed

    def counted(owner, name, kind):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            calls[kind] += 1
            stop(kind, calls[kind])
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    def told(owner, name, kind, place):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            stop(kind, args[place])
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    from align.trainers.sft import SFTTrainer

    counted(Sampler, "judged", "judged")
    counted(SFTTrainer, "training_step", "steps")
    told(files, "put_dir", "put", 1)
    told(files, "write_text", "write", 0)
    told(files, "write_json_lines", "write", 0)
    told(run_rejection, "evaluate_heldout", "look", 2)
    kills = 0
    while True:
        try:
            again = run_rejection.run_rejection(recipe(folder, run="again"))
            break
        except Killed:
            kills += 1
    assert kills == 8 and not stops
    # three pieces and a look a round, the look before them; the four that were stopped were made twice, none else
    for name in ("samples", "demonstrations", "heldout"):
        for number in (0, 1, 2):
            one, other = (folder / run / f"rejection/rounds/{number}/{name}.jsonl" for run in ("run", "again"))
            assert one.is_file() == other.is_file() and (not one.is_file() or one.read_bytes() == other.read_bytes())
    for place in ("rounds/1/model", "rounds/2/model", "model"):
        one, other = (load_file(folder / run / "rejection" / place / "model.safetensors") for run in ("run", "again"))
        assert all(torch.equal(one[name], other[name]) for name in one)
    timeless = [
        [{key: value for key, value in one.items() if "seconds" not in key} for one in found["rounds"]]
        for found in (summary, again)
    ]
    assert timeless[0] == timeless[1]
    assert calls["judged"] == 1 + 3 + 1 + 3 + 1 + 2


@pytest.mark.slow
def test_a_reward_that_fails_is_one_error_and_loses_nothing(whole, monkeypatch):
    folder, summary = whole
    before = (folder / "reward.py").read_text()
    judged, seen = Sampler.judged, []
    monkeypatch.setattr(Sampler, "judged", lambda self, *a, **k: (seen.append(a), judged(self, *a, **k))[1])

    def failing(body, match):
        (folder / "reward.py").write_text(before.replace("return ", body + "\n    return "))
        with pytest.raises(RewardError, match=match):
            run_rejection.run_rejection(recipe(folder, run="nan"))

    bad = "if 'say d' in str(prompts):\n        return "
    failing(f"{bad}[float('nan')] * len(prompts)", "gave nan for reply 0")
    failing(f"{bad}[1.0]", "gave 1 scores for 16 replies")
    assert [path.name for path in (folder / "run".replace("run", "nan") / "rejection/rounds/1/pieces").iterdir()] == [
        "0.jsonl"
    ]
    (folder / "reward.py").write_text(before)
    del seen[:]
    again = run_rejection.run_rejection(recipe(folder, run="nan"))
    assert len(seen) == 2 + 1 + 3 + 1  # the first piece and the look before were kept
    assert again["score_best"] == summary["score_best"] and again["kept"] == summary["kept"]


def test_replies_that_the_reward_fails_on_are_never_chosen(whole):
    folder, summary = whole
    before = (folder / "reward.py").read_text()
    rows = lines(folder / "run/rejection/rounds/1/samples.jsonl")
    at, best = next((at, found.text) for at, row in enumerate(rows) if (found := best_replies.best_reply(row, 1)))
    (folder / "reward.py").write_text(before.replace("return ", f"assert {best!r} not in completions\n    return "))
    with pytest.raises(RewardError, match="'reward' failed: AssertionError"):
        run_rejection.run_rejection(recipe(folder, run="masked"))
    found = run_rejection.run_rejection(recipe(folder, run="masked", on_reward_error="mask"))  # goes on
    (folder / "reward.py").write_text(before)
    rows = lines(folder / "masked/rejection/rounds/1/samples.jsonl")
    unknown = [[one["content"] for one in row["replies"] if one["score"] is None] for row in rows]
    assert unknown == [[best] if number == at else [] for number in range(len(rows))]
    chosen = best_replies.best_reply(rows[at], 1)
    assert chosen is None or chosen.text != best
    assert found["rounds"][0]["replies_failed"] == 1 and found["rounds"][0]["by_k"][-1]["k"] == 7
    assert "replies_failed" not in summary["rounds"][0]


def test_samples_of_other_prompts_are_refused(whole):
    folder, _ = whole
    file = folder / "run/rejection/rounds/1/samples.jsonl"
    prompts, _, _ = run_rejection.read_prompts(
        recipe(folder), recipe(folder).rejection, str(folder / "policy"), "rejection"
    )
    assert len(candidates.read_samples(file, prompts, 8)) == 6
    with pytest.raises(DataError, match=r"other prompts or another num_generations .*: remove it"):
        candidates.read_samples(file, prompts[::-1], 8)
    with pytest.raises(DataError, match="remove it"):
        candidates.read_samples(file, prompts, 7)


def test_fresh_and_a_changed_recipe_know_the_rounds(whole):
    folder, _ = whole
    made = recipe(folder, run="copied")
    shutil.copytree(folder / "run", folder / "copied")
    (folder / "copied/rejection/summary.json").unlink()
    require_unchanged(made, ("rejection",))
    with pytest.raises(RecipeChangedError, match=r"rejection\.threshold was absent, is 2\.0"):
        require_unchanged(recipe(folder, run="copied", threshold=2.0), ("rejection",))
    shutil.rmtree(folder / "copied/rejection/model")
    (folder / "copied/rejection/metrics.jsonl").unlink()
    assert is_begun(made, "rejection")  # by its rounds alone
    clear_stages(made, ("rejection",))
    assert not (folder / "copied/rejection").exists()


def test_ties_go_to_the_first():
    row = {"replies": [{"content": text, "score": 1.0, "stop": "end"} for text in ("one", "two")]}
    first = best_replies.best_reply(row, 1)
    assert first == best_replies.Best("one", 1.0, 1)
    assert best_replies.better(first, best_replies.Best("two", 1.0, 2)) is first
    assert best_replies.better(None, first) is first and best_replies.better(first, None) is first


def test_it_ends_where_rounds_become_no_better(tmp_path, monkeypatch):
    recipe(tmp_path)
    changes = scripted(monkeypatch, tmp_path) | {"max_steps": 1, "save_steps": None}
    summary = run_rejection.run_rejection(recipe(tmp_path, **changes, early_stopping={"patience": 1}))
    assert [one["round"] for one in summary["rounds"]] == [1]
    told = "score_greedy has not become better than 0 (step 0) in 1 evaluation; round 1 of 2"
    assert summary["stopped_early"] == told and (tmp_path / "run/rejection/model").is_dir()
