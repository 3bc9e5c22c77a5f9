"""Several runs laid over each other."""

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from statistics import fmean, stdev

import pytest

from align import cli
from align.evaluation.shares import Z95
from align.report.compare import (
    Cell,
    ReportError,
    build_comparison,
    differing_keys,
    doubts,
    lines,
    outcome,
    read_sides,
    render_comparison,
    run_folder,
    same_reward,
)
from align.report.differences import difference, result
from align.runs.run_files import Run, StageFiles
from align.runtime.errors import MissingFileError
from tests.align.report import synthetic_run
from tests.align.report.synthetic_run import RECIPE, write
from tests.align.report.test_build import NONSENSE, Page, plots

make_run = partial(synthetic_run.make_run, categories=("maths",))  # the wins in each are a fit of their own
GOLD = "the gold score of the embedded world, which training has not seen"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same prompts; the second's policy is right more often, and its judge is named otherwise."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = (make_run(folder / name, prompts=30, iterations=12, pairs=40) for name in ("first", "second"))
    for root, better in ((first, 0), (second, 1)):
        rows = [json.loads(line) for line in (root / "ppo/eval.jsonl").read_text().splitlines()]
        for at, row in enumerate(rows):
            row["prompt"], row["ppo_correct"] = f"prompt {at}", float(at % 3 == 0 or (better and at % 3 == 1))
        write(root / "ppo/eval.jsonl", rows)
        summary = json.loads((root / "ppo/summary.json").read_text())
        summary |= {"correct": fmean(row["ppo_correct"] for row in rows), "win": 20, "tie": 4, "loss": 6}
        summary |= {"eval_prompts": 30, "origins": {"reward": {"kind": "stage", "value": "rm"}}}
        write(root / "ppo/summary.json", summary)
    recipe = RECIPE.replace("seed: 0", "seed: 3").replace("critic_warmup_steps: 20", "kl_coef: 0.1")
    for stage in ("base", "sft", "pmp", "rm", "ppo"):
        write(second / stage / "recipe.yaml", recipe.replace("pmp: {data: ['tinyworld:coarse_comparisons']}\n", ""))
    return first, second


@pytest.fixture(scope="module")
def sides(runs):
    return tuple(read_sides(runs))


@pytest.fixture(scope="module")
def rows(sides):
    return rows_of(sides)


def of(name, summary, **files):
    return Run("n", {}, {name: StageFiles(name, summary, **files)}, {}, [])


def rows_of(sides):
    found, stage = {}, ""
    for line in lines(sides):
        stage = line.stage or stage
        found[stage, line.measured] = [(one.text, one.interval) for one in (*line.figures, *line.differences)]
    return found


def test_differences_on_the_same_prompts_are_paired(sides, rows):
    first, second = (result(side.run, "ppo", "correct") for side in sides)
    assert (first.value, second.value) == (10 / 30, 20 / 30)
    found = difference(first, second)
    changes = [float(at % 3 == 1) for at in range(30)]  # each prompt's own, computed here
    half = Z95 * stdev(changes) / math.sqrt(30)
    assert found.value == pytest.approx(fmean(changes))
    assert found.interval == pytest.approx((fmean(changes) - half, fmean(changes) + half))
    row = rows["ppo", "correct, greedy"]
    assert row[2] == ("+33.3 points", f"[{100 * found.interval[0]:+.1f}, {100 * found.interval[1]:+.1f}]")


def test_differences_on_other_prompts_are_of_independent_runs(sides):
    first, second = (result(side.run, "ppo", "correct") for side in sides)
    other = result(of("ppo", {"correct": 0.5, "correct_low": 0.3, "correct_high": 0.7}), "ppo", "correct")
    low, high = difference(first, other).interval
    down, up = (math.hypot(0.2, first.interval[1] - first.value), math.hypot(0.2, first.value - first.interval[0]))
    assert (low, high) == pytest.approx((0.5 - 1 / 3 - down, 0.5 - 1 / 3 + up))
    assert difference(second, result(of("ppo", {"correct": 0.5}), "ppo", "correct")).interval is None


def test_several_pairs_of_a_prompt_hang_together():
    rows = [
        {
            "prompt": f"p{at // 4}",
            "chosen": str(at),
            "rejected": "x",
            "chosen_score": 1.0,
            "rejected_score": at // 4 % 2,
        }
        for at in range(40)
    ]
    found = result(of("rm", {"accuracy": 0.75}, evals=rows), "rm", "accuracy")
    means = [1.0, 0.5] * 5  # one a prompt: ties count half
    half = Z95 * stdev(means) / math.sqrt(10)
    assert found.interval == pytest.approx((0.75 - half, 0.75 + half))


def test_what_counts_stands_first_and_figures_are_the_summarys(runs, rows):
    order = [words for stage, words in rows if stage == "ppo"]
    wins = "wins and half the ties against its start, greedy"
    assert order[0] == "correct, greedy" and order.index(wins) < order.index(
        "score of the reward it was trained on, temperature 1"
    )
    assert next(iter(rows))[0] == "ppo"
    for name, key, words in (
        ("ppo", "kl", "KL from the reference, nats a reply"),
        ("sft", "heldout_loss", "held-out loss, nats a token"),
    ):
        told = [json.loads((root / name / "summary.json").read_text())[key] for root in runs]
        assert [text for text, _ in rows[name, words]] == [*(f"{value:.4g}" for value in told), "+0"]


def test_scores_of_other_rewards_have_no_difference(sides, rows):
    row = rows["ppo", "score of the reward it was trained on, temperature 1"]
    assert row == [("1.6", ""), ("1.6", ""), ("–", "")]
    (told,) = [one for one in doubts(sides) if "rewards" in one]
    assert told == "ppo was trained on different rewards: their scores have no scale in common, nor a difference"


def test_other_judges_and_other_rows_are_named(runs, sides, tmp_path):
    third = make_run(tmp_path / "third", prompts=5, iterations=2, pairs=3)
    summary = json.loads((third / "ppo/summary.json").read_text())
    write(
        third / "ppo/summary.json", summary | {"judged_by": "the people of people.csv", "win": 3, "tie": 0, "loss": 2}
    )
    others = read_sides([runs[0], third])
    told = list(doubts(others))
    assert told[0] == (
        f"ppo was judged by different judges (first: {GOLD}; third: the people of "
        "people.csv): wins and scores of judges cannot be compared"
    )
    assert (
        "pmp, rm, ppo: measured on different held-out rows in each run, so that differences are partly theirs" in told
    )
    row = rows_of(others)["ppo", "wins and half the ties against its start, greedy"]
    assert [text for text, _ in row] == ["73.3 %", "60.0 %", "–"]
    assert not any("judges" in one for one in doubts(sides))


def test_only_keys_that_differ_are_told():
    first = {"name": "a", "seed": 0, "output_dir": "x", "ppo": {"lam": 0.9, "data": [{"path": "p"}], "steps": [1, 2]}}
    second = {"name": "a", "seed": 1, "output_dir": "y", "ppo": {"lam": 0.9, "data": [{"path": "q"}]}, "rm": {"lr": 1}}
    assert differing_keys([first, second]) == {
        "rm": ["(not there)", "(there)"],
        "seed": ["0", "1"],
        "ppo.data.0.path": ["p", "q"],
        "ppo.steps": ["[1, 2]", "(not there)"],
    }
    assert differing_keys([first, first]) == {} and differing_keys([first, {}]) == {}
    third = {"rm": None, "ppo": {"data": [{"path": "q", "hub": None}, {"path": "r", "hub": None}], "lam": 0.9}}
    assert differing_keys([second, {}, third]) == {  # what is null or lacking has no parts to tell
        "name": ["a", "", "(not there)"],
        "seed": ["1", "", "(not there)"],
        "ppo.data.0.hub": ["(not there)", "", "null"],
        "ppo.data.1": ["(not there)", "", '{"path": "r"}'],
        "rm": ["(there)", "", "(not there)"],
    }


def test_what_is_counted_by_the_token_has_no_difference_between_tokenizers(runs, rows, tmp_path):
    other = make_run(tmp_path / "other", prompts=30, iterations=12, pairs=40)
    for stage in ("base", "sft", "pmp", "rm", "ppo"):
        write(other / stage / "recipe.yaml", RECIPE.replace("model:\n", "model:\n  path: /models/another\n"))
    others = read_sides([runs[0], other])
    alike, unlike = rows, rows_of(others)
    loss = ("sft", "held-out loss, nats a token")
    assert alike[loss][2][0] == "+0" and unlike[loss][2][0] == "–"
    assert "The runs have different models or tokenizers" in " ".join(doubts(others))


def test_one_sentence_tells_the_first_difference(sides):
    sides = [*sides]
    again = replace(sides[0].run, stages=dict(sides[0].run.stages))
    sides.append(replace(sides[0], name="again", run=again))
    table = list(lines(sides))
    told = outcome(sides, table)
    figures, differences = table[0].figures, table[0].differences
    assert differences[0].sure and not differences[1].sure
    assert told == (
        f"PPO, correct, greedy: {sides[0].name} {figures[0].text}, {sides[1].name} {figures[1].text} "
        f"({differences[0].text} {differences[0].interval}), {sides[2].name} {figures[2].text} "
        f"({differences[1].text} {differences[1].interval}, which may be chance)."
    )
    wins = next(one for one in table if one.measured.startswith("wins"))
    wins = replace(wins, stage="ppo", differences=[Cell("+1.0 points", "[+0.5, +1.5]", True)] * 2)
    assert outcome(sides, [wins]).endswith(f"; judged by {GOLD}.")
    sides[2].run.stages["ppo"] = replace(sides[2].run.stages["ppo"], evals=sides[0].run.stages["ppo"].evals[1:])
    assert outcome(sides, [wins]).endswith(f"; measured on different held-out rows; judged by {GOLD}.")
    assert outcome(sides, []) == ""


def test_the_page_of_two_runs(runs, capsys):
    assert cli.main(["report", *map(str, runs)]) == 0
    index = runs[0].parent / "compare-first-second/index.html"
    assert capsys.readouterr().out == f"{index}\n"
    page, text = Page(index), index.read_text(encoding="utf-8")
    assert "ppo.critic_warmup_steps 20 (not there)" in page.text and "ppo.kl_coef (not there) 0.1" in page.text
    assert "pmp (there) (not there)" in page.text and "seed 0 3" in page.text
    assert f"judged by {GOLD} {GOLD}" in page.text
    assert not {"script", "img"} & set(page.tags) and not re.search(r"url\((?!#)", text)
    shown = plots(index)
    assert shown[:6] == ["base: loss", "sft: loss", "pmp: loss", "pmp: accuracy", "rm: loss", "rm: accuracy"]
    assert "reward (raw score)" in shown and text.count("</i>first</li>") == len(shown)


def test_the_page_of_one_run_is_refreshed(report, runs, tmp_path, capsys):
    index = runs[0] / "report/index.html"
    assert cli.main(["report", str(runs[0] / "ppo")]) == 0
    assert capsys.readouterr().out == f"{index.resolve()}\n" and "pmp: loss" in plots(index)
    for words, said in (
        ([tmp_path], f"error: {tmp_path} holds no stage of a run (base, sft, pmp"),
        ([tmp_path / "no"], f"error: {tmp_path / 'no'}: no such run folder"),
        ([runs[0], "--out", tmp_path], "error: --out is for several runs"),
        ([runs[0], runs[0]], "error: first: the same run is named twice"),
        ([runs[0]] * 7, "error: 2 to 6 runs can be laid over each other, not 7"),
    ):
        if said.startswith("error: first"):
            said = f"error: {runs[0].resolve()}".replace("error: /", "error: ") + ": the same run is named twice"
        assert cli.main(["report", *map(str, words)]) == 1
        assert capsys.readouterr().err.startswith(said)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / name / "chain", prompts=2, iterations=2, pairs=2) for name in "ab"]
    assert [side.name for side in read_sides(folders)] == ["a/chain", "b/chain"]
    index = build_comparison(folders, tmp_path / "out")
    assert index == tmp_path / "out/index.html" and "a/chain, b/chain, compared" in Page(index).text
    with pytest.raises(ReportError):
        build_comparison(folders[:1])
    with pytest.raises(MissingFileError):
        run_folder(tmp_path)


def test_an_unfinished_run_and_one_of_other_stages(runs, tmp_path):
    write(tmp_path / "other/sft/metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    text = Page(render_comparison(read_sides([runs[0], tmp_path / "other"]), {})).text
    assert "sft finished unfinished, at step 2" in text and "No recipe that can be read: other." in text
    assert "The recipes do not differ" not in text


def test_hostile_values_make_a_page(runs, tmp_path):
    evil = "</td><script>alert(1)</script>\u202e{{ 7 * 7 }}"
    plain = make_run(tmp_path / "plain", prompts=3, iterations=2, pairs=3)
    write(plain / "ppo/recipe.yaml", f"name: {json.dumps(evil)}\nseed: {json.dumps(evil)}\n")
    roots = []
    for at, value in enumerate([evil, *NONSENSE]):
        roots.append(shutil.copytree(plain, tmp_path / f"run{at}"))
        for path in (*roots[-1].glob("*/summary.json"), *roots[-1].glob("*/eval.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps(dict.fromkeys(row, value)) + "\n" for row in rows))
    for at in range(0, len(roots), 5):
        page = Page(render_comparison(read_sides([runs[0], *roots[at : at + 5]]), {}))
        assert "script" not in page.tags and "{{ 7 * 7 }}" in page.text and "\u202e" not in page.text


def test_which_rewards_are_the_same():
    def of_ppo(origin, **recipe):
        summary = {"origins": {"reward": origin}} if origin else {}
        return Run("n", {}, {"ppo": StageFiles("ppo", summary)}, recipe, [])

    own, folder = {"kind": "stage", "value": "rm"}, {"kind": "path", "value": "hub/reward"}
    assert not same_reward([of_ppo(own, rm={})] * 2, "ppo")
    assert not same_reward([of_ppo(None, rm={})] * 2, "ppo")  # of a version that did not note it
    assert same_reward([of_ppo(folder, rm={})] * 2, "ppo")
    rule = {"ppo": {"reward": [{"kind": "gsm8k"}]}}
    assert same_reward([of_ppo(None, **rule, rm={})] * 2, "ppo")
    assert not same_reward([of_ppo(None, **rule), of_ppo(None, ppo={"reward": [{"kind": "ifeval"}]})], "ppo")
