"""recipes/real_small.yaml on the real files, a smaller model and few steps: is the measuring honest?

The files are not part of the project; they lie in shared/data/real beside the repository, where there is one.
"""

import json
import math

import pytest

from align import cli
from align.recipe.check import check_recipe
from align.recipe.sources import stage_sources
from tests.commands import ROOT
from tests.ranks import exit_codes

REAL = ROOT.parent / "shared" / "data" / "real"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real files are not there: {REAL}")

SMALLER = [
    *(f"model.architecture.{key}" for key in ("hidden_size=32", "intermediate_size=48", "num_hidden_layers=1")),
    *("base.max_steps=10", "base.warmup_steps=2", "base.max_length=128", "sft.max_steps=2", "sft.warmup_steps=1"),
    *("sft.max_length=256", "sft.eval_num_replies=4", "sft.max_completion_length=8", "pmp.max_steps=2"),
    *("pmp.max_length=512", "rm.max_steps=4", "rm.max_length=512", "rm.holdout=0.1"),
    *("ppo.num_iterations=2", "ppo.critic_warmup_steps=1", "ppo.rollout_batch_size=8", "ppo.micro_batch_size=8"),
    *("ppo.rollout.max_completion_length=8", "ppo.evaluation.limit=12"),
]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_file_is_there():
    recipe = check_recipe("real_small", [f"data_root={REAL}"])
    named = [source for stage in recipe.stages for _, source in stage_sources(recipe, stage)]
    assert len(named) > 25


def command(run):
    assert cli.main(["run", "real_small", f"data_root={REAL}", f"output_dir={run}", *SMALLER]) == 0


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Its folder, and what was printed."""
    run = tmp_path_factory.mktemp("real") / "run"
    codes, printed = exit_codes(1, command, run)
    assert codes == [0], printed
    return run, printed


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pmp", "rm"])
def test_accuracy_stands_beside_its_interval_and_baselines(chain, stage):
    run, printed = chain
    summary, rows = json.loads((run / stage / "summary.json").read_text()), lines(run / stage / "eval.jsonl")
    n, right = len(rows), sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert (summary["pairs"], summary["correct"]) == (n, right)
    assert n > (100 if stage == "rm" else 40)
    assert summary["accuracy"] == right / n
    # ends of Wilson's interval solve |accuracy - end| = z sqrt(end (1 - end) / m), m the pairs that are independent
    ends = (summary["accuracy_low"], summary["accuracy_high"])
    counts = [1.959964**2 * end * (1 - end) / (summary["accuracy"] - end) ** 2 for end in ends]
    assert counts[0] == pytest.approx(counts[1], rel=1e-4) and 0.5 * n < counts[0] < 1.0001 * n
    longer = sum(0.5 * (len(r["chosen"]) == len(r["rejected"])) + (len(r["chosen"]) > len(r["rejected"])) for r in rows)
    first = sum(0.5 * (row["chosen"] == row["rejected"]) + (row["chosen"] < row["rejected"]) for row in rows)
    assert summary["length_baseline"] in (pytest.approx(longer / n), pytest.approx(1 - longer / n))
    assert summary["majority_baseline"] in (pytest.approx(first / n), pytest.approx(1 - first / n))
    assert f"accuracy on {n}" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "read"), [("rm", 1200 + 180 + 180), ("pmp", 25 + 200 + 250 + 150)])
def test_every_row_of_the_files_is_accounted_for(chain, stage, read):
    run, _ = chain
    summary = json.loads((run / stage / "summary.json").read_text())
    counts = [summary["unread_rows"], summary["dropped_rows"], summary["heldout_dropped_rows"]]
    gone = sum(number for each in counts for reason, number in each.items() if reason != "truncated")
    assert summary["rows"] + summary["pairs"] + gone == read


@pytest.mark.slow
def test_what_is_left_out_is_counted_and_named(chain):
    run, printed = chain
    rm, pmp, ppo = (json.loads((run / stage / "summary.json").read_text()) for stage in ("rm", "pmp", "ppo"))
    assert rm["unread_rows"] == {"empty reply": 4}  # as a scan of the file by eye found
    assert pmp["unread_rows"] == {"tie": 3}
    assert "hh_harmless.jsonl.gz (hh): 1200 rows, 1196 kept; dropped: empty reply 4" in printed
    assert "alpacaeval_gpt4_alpaca-7b.json (alpacaeval): 200 rows, 197 kept; dropped: tie 3" in printed
    for stage, summary in (("rm", rm), ("pmp", pmp), ("ppo", ppo)):
        for kind, word in (("dropped_rows", "rows"), ("heldout_dropped_rows", "held-out rows")):
            assert summary[kind]
            for reason, count in summary[kind].items():
                assert f"{stage}: {count} {word}: {reason}" in printed
    assert ppo["prompts"] + sum(ppo["dropped_rows"].values()) == 340 + 400 + 300 + 300
    assert "Traceback" not in printed and "warning" not in printed.lower()


@pytest.mark.slow
def test_the_base_is_measured_against_the_unigram_entropy(chain):
    run, _ = chain
    base = json.loads((run / "summary.json").read_text())["base"]
    assert 5 < base["unigram_entropy"] < math.log(4096) and base["heldout_loss"] > 0
    ppo = lines(run / "ppo" / "eval.jsonl")
    assert len(ppo) == 12 and all(row["category"] for row in ppo)
