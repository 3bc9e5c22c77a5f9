"""The study of checkable constraints: the rules, the prompts, the table, and all of it on a tiny model."""

import json

import pytest

from examples.experiments import constraints
from tests.recipes.miniature import write_model


@pytest.mark.parametrize(
    ("name", "value", "right", "wrong"),
    [
        ("at most", 8, "Tea is made of leaves.", "Tea is made of the leaves of a small plant."),
        ("at least", 20, "It's a word " * 7, "Tea is hot."),
        ("sentences", 2, "It is hot. Is it good?!", "It costs 2.50 a cup."),
        ("keyword", "time", "Time flies.", "Sometimes."),
        ("lowercase", "", "tea, hot.", "Tea."),
        ("capitals", "", "TEA 2.", "TEa"),
        ("no commas", "", "Tea is a hot drink that many people like.", "Tea."),
        ("bullets", 2, "* one\n\n* two", "Here:\n* one\n* two"),
        ("beginning", "In short", "In short, tea.", "Tea, in short."),
        ("quotes", "", '"Tea is hot."', '"Tea" is "hot"'),
    ],
)
def test_a_rule_knows_right_from_wrong(name, value, right, wrong):
    texts = [right, f"  {right}\n", wrong, "", " "]
    found = constraints.followed([], texts, [name] * len(texts), [value] * len(texts))
    assert found == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_held_out_prompts_are_about_other_topics(tmp_path):
    words = constraints.write_prompts(tmp_path)
    train, heldout = ((tmp_path / f"{name}.jsonl").read_text() for name in ("train", "heldout"))
    assert str(tmp_path) in words[0] and constraints.write_prompts(tmp_path) == words
    assert (tmp_path / "train.jsonl").read_text() == train  # seeds decide
    topics = [{topic for topic in constraints.TOPICS if f" {topic}" in text} for text in (train, heldout)]
    assert not topics[0] & topics[1] and len(topics[1]) == constraints.HELDOUT
    assert len(heldout.splitlines()) == 10 * len(constraints.CONSTRAINTS) == 100


def test_the_table_and_the_curve(tmp_path):
    gain = {"difference": 0.25, "low": 0.125, "high": 0.375}
    one = {"seed": 0, "kl": 3.0, "seconds": 9.4, "reward": 0.5, "reward_sampled": 0.5, "curve": [[0, 0.25, 0.25, 0.0]]}
    one |= {"reward_gain": gain, "reward_gain_sampled": gain}
    line = constraints.table({"rloo": [one]}).splitlines()[2]
    assert line == "| rloo | 0 |" + 2 * " 25.0% → 50.0% | +25.0% [+12.5%, +37.5%] |" + " 3.00 | 9 |"
    constraints.draw({"rloo": [one, one]}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_every_estimator_on_a_tiny_model(tmp_path, capsys):
    sizes = {"num_iterations": 4, "rollout_batch_size": 2, "evaluation.every_steps": 2, "evaluation.limit": 4}
    sizes |= {"rollout.max_prompt_length": 256, "rollout.max_completion_length": 8, "save_steps": 2}
    ask = [str(write_model(tmp_path / "tiny")), *(f"ppo.{key}={value}" for key, value in sizes.items())]
    ask += ["--out", str(tmp_path / "out"), "--seeds", "1"]
    assert constraints.main(ask) == 0
    rows = capsys.readouterr().out.strip().splitlines()[-len(constraints.ESTIMATORS) :]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {name}", "1"] for name in constraints.ESTIMATORS]
    made = json.loads((tmp_path / "out/grpo/seed1/outcome.json").read_text())
    assert [point[0] for point in made["curve"]] == [0, 2, 4]
    assert (tmp_path / "out/curve.png").read_bytes()[1:4] == b"PNG"
    (tmp_path / "out/curve.png").unlink()
    assert constraints.main([*ask, "--only", "grpo"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1:] == rows[-1:] and (tmp_path / "out/curve.png").is_file()
