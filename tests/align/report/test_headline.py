from align.report.headline import headline_rows
from align.runs.run_files import Run, StageFiles
from align.stages.overview import headline as terminal_lines


def run_of(**summaries) -> Run:
    stages = {name: StageFiles(name, summaries.get(name, {})) for name in ("base", "sft", "pmp", "rm", "ppo")}
    return Run("n", {}, stages, {}, [])


def cells(**summaries):
    return [(row.stage, row.measured, row.before, row.after, row.seconds) for row in headline_rows(run_of(**summaries))]


def test_base_and_sft():
    base = {"heldout_loss": 0.54321, "unigram_entropy": 4.2, "seconds": 61.4}
    sft = {"heldout_loss": 1.0, "heldout_loss_before": 2.0, "end_rate": 0.96, "headline": [["gold", None, 0.5]]}
    assert cells(base=base, sft=sft) == [
        ("base", "held-out loss, nats a token", "4.2 (unigram entropy)", "0.5432", "61"),
        ("sft", "held-out loss, nats a token", "2", "1", ""),
        ("", "gold", "", "0.5", ""),
        ("", "replies that end by themselves", "", "96.0 %", ""),
    ]


def test_nothing_held_out():
    assert cells(sft={"heldout_loss": None, "train_loss": 1.5})[0][1:4] == (
        "training loss, nats a token (nothing held out)",
        "",
        "1.5",
    )


RM = {
    "accuracy": 0.8,
    "accuracy_low": 0.775,
    "accuracy_high": 0.823,
    "accuracy_before": 0.66,
    "pairs": 1200,
    "by_tag": {"correctness": {"accuracy": 0.7, "pairs": 480}, "torn": 3},
    "length_baseline": 0.55,
    "majority_baseline": 0.52,
}


def test_reward_stage():
    assert cells(rm=RM) == [
        ("rm", "accuracy on 1200 held-out pairs", "66.0 %", "80.0 % [77.5 %, 82.3 %]", ""),
        ("", "those tagged correctness (480)", "", "70.0 %", ""),
        ("", "by length alone", "", "55.0 %", ""),
        ("", "by the side that won more often", "", "52.0 %", ""),
    ]
    assert cells(pmp={**RM, "accuracy_before": None})[0][2] == "50.0 % (chance)"


def test_the_page_repeats_what_the_terminal_said():
    whole = RM | {"by_tag": {"correctness": RM["by_tag"]["correctness"]}, "headline": [["by manners", None, "51 %"]]}
    for stage, summary in (("rm", whole), ("base", {"heldout_loss": 0.5, "unigram_entropy": 4.0})):
        told = {(what.strip(), before, after) for what, before, after in terminal_lines(stage, summary)}
        assert told <= {row[1:4] for row in cells(**{stage: summary})}


def test_ppo_with_and_without_held_out_prompts():
    model = {"origins": {"reward": {"kind": "stage", "value": "rm"}}}
    ppo = {"score_before": 0.1, "score": 1.25, "kl": 4.0, "rollout_score": 1.0} | model
    assert [row[1:4] for row in cells(ppo=ppo)] == [
        ("reward model's score, temperature 1", "0.1", "1.25"),
        ("KL from the reference, nats a reply", "", "4"),
    ]
    assert cells(ppo=model | {"rollout_score_first": 0.5, "rollout_score": 1.0})[0][1:4] == (
        "reward model's score on rollouts",
        "0.5",
        "1",
    )


def test_stages_without_figures_tell_their_state():
    stages = run_of().stages | {
        "sft": StageFiles("sft", metrics=[{"step": 12}]),
        "rm": StageFiles("rm", {"seconds": 3.0}),
    }
    rows = headline_rows(Run("n", {}, stages, {"ppo": {}}, []))
    assert [(row.stage, row.measured) for row in rows] == [
        ("sft", "unfinished, at step 12"),
        ("rm", "finished"),
        ("ppo", "not run"),
    ]


def test_a_gold_reward_stands_with_what_was_trained_on():
    summary = {"score_before": 0.5, "score": 1.0, "gold_before": 0.25, "gold": 0.125}
    gold = ("ppo", "gold reward (never trained on), temperature 1", "0.25", "0.125", "")
    assert cells(ppo=summary)[0] == gold
    del summary["gold_before"]  # the world's gold score, after
    assert [row[1] for row in cells(ppo=summary)] == ["reward's score, temperature 1"]


def test_what_is_right_comes_before_who_won_and_that_before_scores():
    told = [["gold, greedy", 0.5, 1.0], ["correct, greedy", 0.25, 0.5], ["win / tie / loss", None, "1 / 0 / 0"]]
    assert [row[1:4] for row in cells(ppo={"headline": told, "score": 2.0})] == [
        ("correct, greedy", "25.0 %", "50.0 %"),
        ("win / tie / loss", "", "1 / 0 / 0"),
        ("gold, greedy", "0.5", "1"),
        ("reward's score, temperature 1", "", "2"),
    ]


def test_a_reward_that_is_no_model_is_not_called_one():
    stages = run_of(ppo={"score": 1.0, "rollout_score": 1.0}).stages
    for reward, named in (
        ([{"kind": "function", "function": "a/b.py:brief"}], "reward function brief"),
        ([{"kind": "gsm8k"}], "rule gsm8k"),
        ({"kind": "http", "url": "http://x"}, "reward endpoint"),
        ([{"kind": "model", "weight": 1}, {"kind": "length", "name": "short", "weight": 2}], "sum of model and short"),
        ([], "reward model"),
    ):
        rows = headline_rows(Run("n", {}, stages, {"ppo": {"reward": reward}}, []))
        assert [row.measured for row in rows] == [f"{named}'s score, temperature 1"]
