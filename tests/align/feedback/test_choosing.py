"""Which pairs are chosen, what their judgments are expected to bring, and how sure that is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from align import cli
from align.feedback.choosing import choose, expectation, farthest_first, in_turns, information, pairs_of
from align.feedback.collect import CollectError
from align.feedback.items import FeedbackReply, load_items, new_item
from align.feedback.learning_curve import Point, curve_of, fitted
from align.feedback.spread import DROPPED, MEMBERS, member_logits
from align.runtime.files import write_json_lines
from align.runtime.pieces import Pieces
from data_formats.records import Message, Prompt
from reward.protocol import Sample
from reward.sources import load_reward
from tests.align.chat.run_folder import write_run

REWARDS = """\
def short(prompts, completions):
    return [-float(len(text)) for text in completions]

def long(prompts, completions):
    return [float(len(text)) for text in completions]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "tiny")
    (run / "rewards.py").write_text(REWARDS)
    write_json_lines(run / "prompts.jsonl", [{"prompt": f"question {at}"} for at in range(6)])
    (run / "recipe.yaml").write_text(
        f"name: choosing\noutput_dir: {run}\nmodel: {{path: {run}/sft/model}}\n"
        f"collect:\n  data: [{run}/prompts.jsonl]\n"
        "  sources: [{model: sft}, {model: ppo}]\n  num_replies: 3\n  max_completion_length: 8\n"
    )
    return run


def item_of(question, *replies):
    return new_item(Prompt((Message("user", question),)), [FeedbackReply("", text) for text in replies])


def test_information_by_hand():
    first_MP = np.array([[1.0, 0.5, 0.9, 0.8], [0.0, 0.5, 0.9, 0.4]])
    entropy = -0.6 * math.log(0.6) - 0.4 * math.log(0.4)
    own = (-0.8 * math.log(0.8) - 0.2 * math.log(0.2) + entropy) / 2
    assert information(first_MP) == pytest.approx([math.log(2), 0, 0, entropy - own], abs=1e-9)


def test_expectation_by_hand():
    first_MP = np.random.default_rng(0).uniform(size=(5, 40))
    told = expectation(first_MP, [3, 7, 9])
    nats = information(first_MP)
    assert told["nats"] == pytest.approx(nats[[3, 7, 9]].sum())
    assert told["nats_random"] == pytest.approx(3 * nats.mean())
    against = np.minimum(first_MP.mean(0), 1 - first_MP.mean(0))
    assert told["surprises"] == pytest.approx(against[[3, 7, 9]].mean())
    assert told["surprises_random"] == pytest.approx(against.mean())
    without = [information(first_MP[[m for m in range(5) if m != at]][:, [3, 7, 9]]).sum() for at in range(5)]
    assert told["nats_error"] == pytest.approx(math.sqrt(4 / 5 * sum((np.array(without) - np.mean(without)) ** 2)))
    assert expectation(first_MP[:2], [0])["nats_error"] is None


def test_surprises_come_as_often_as_expected():
    """Judgments drawn from the members' mean go against it in the share that was said, as far off as was said."""
    rng = np.random.default_rng(1)
    first_MP = rng.uniform(size=(4, 400))
    told, mean = expectation(first_MP, range(400)), first_MP.mean(0)
    shares = [np.mean((rng.uniform(size=400) < mean) != (mean > 0.5)) for _ in range(500)]
    assert np.mean(shares) == pytest.approx(told["surprises"], abs=4 * told["surprises_error"] / math.sqrt(500))
    assert np.std(shares) == pytest.approx(told["surprises_error"], rel=0.15)


def test_prompts_take_turns():
    assert in_turns([4, 0, 1, 2, 3], ["a", "a", "b", "b", "a"], 4) == [4, 2, 0, 3]


def test_uncertain_takes_what_the_members_differ_about():
    pairs = pairs_of([item_of("one", "a", "b", "c"), item_of("two", "a", "b")])
    assert len(pairs) == 4
    first_MP = np.array([[0.9, 0.9, 0.5, 0.6], [0.9, 0.1, 0.5, 0.5]])
    assert choose(pairs, 2, "uncertain", seed=0, first_MP=first_MP) == [1, 3], "one a prompt first"
    assert sorted(choose(pairs, 9, "uncertain", seed=0, first_MP=first_MP)) == [0, 1, 2, 3]
    assert {tuple(choose(pairs, 2, "random", seed=seed)) for seed in range(30)} > {(0, 3), (3, 1)}


def test_diverse_takes_what_is_least_alike():
    texts = (
        [f"the {colour} cat" for colour in ("red", "blue")] + ["sum of 3 and 4", "sum of 3 and 5"] + ["wholly other"]
    )
    for start in range(5):
        taken = farthest_first(texts, 3, [start])
        assert {0 if at < 2 else 1 if at < 4 else 2 for at in taken} == {0, 1, 2}
    assert sorted(farthest_first([*texts, "?!", ""], 9, [0])) == list(range(7))


def test_diverse_goes_on_from_what_was_chosen_before():
    pairs = pairs_of([item_of(f"{topic} {at}", f"{topic} red", f"{topic} blue") for topic in "xyz" for at in range(3)])
    for seed in range(5):
        first = choose(pairs, 1, "diverse", seed=seed)
        left = [at for at in range(9) if at not in first]
        more = choose([pairs[at] for at in left], 2, "diverse", seed=seed, before=[pairs[at] for at in first])
        assert {at // 3 for at in (*first, *(left[at] for at in more))} == {0, 1, 2}
    assert sorted(choose(pairs[1:], 99, "diverse", seed=0, before=pairs[:1])) == list(range(8))


def test_a_line_is_found_with_its_error():
    exact = [Point(seen, 100 * (0.6 + 0.03 * math.log(seen)), 100) for seen in (10, 100, 1000, 5000)]
    assert fitted(exact, 6000).slope == pytest.approx(0.03)
    gain = fitted(exact, 6000).gain(600)
    assert gain["gain"] == pytest.approx(0.03 * math.log(1.1)) and gain["seen"] == 6000
    rng, off = np.random.default_rng(0), []
    for _ in range(300):
        points = [
            Point(seen, rng.binomial(200, 0.6 + 0.03 * math.log(seen)), 200) for seen in np.geomspace(50, 5000, 12)
        ]
        curve = fitted(points, 6000)
        off.append((curve.slope - 0.03) / curve.error)
    assert abs(np.mean(off)) < 0.2 and 0.75 < np.std(off) < 1.1, "a standard error is one"
    assert fitted(exact[:3], 6000) is None


def test_the_curve_of_a_stage(run):
    rows = [{"step": 1, "accuracy": 0.5, "epoch": 0.1}]
    rows += [{"step": 10 * at, "accuracy": 0.5 + 0.1 * math.log(10 * at), "epoch": at / 4} for at in range(1, 9)]
    (run / "rm/recipe.yaml").write_text("rm: {batch_size: 16}\n")
    write_json_lines(run / "rm/metrics.jsonl", rows)
    curve = curve_of(run / "rm")
    assert curve == curve_of(run / "rm/model") == curve_of(run) and curve.seen == 16 * 40, "the first epoch alone"
    assert 0.05 < curve.slope < 0.15
    assert curve_of(run / "sft") is None and curve_of(run / "rewards.py:short") is None


def test_dropout_of_the_head_is_what_it_says(run, tmp_path):
    """The members are heads of the model's own states with inputs left out, and average to what the model says."""
    items = [item_of("one", "alpha", "beta"), item_of("two", "gamma")]
    logits = member_logits([str(run / "rm")], items, Pieces(tmp_path), seed=7)
    assert [one.shape for one in logits] == [(MEMBERS, 2), (MEMBERS, 1)]
    reward = load_reward(run / "rm/model")
    caught = []
    reward.model.head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    said = reward.outputs([Sample(item.prompt, one.reply) for item in items[1:] for one in item.replies])
    (state_1d,) = caught
    kept_Md = torch.rand(MEMBERS, state_1d.shape[1], generator=torch.Generator().manual_seed(7)) >= DROPPED
    wanted_M = (reward.model.head.weight * kept_Md / (1 - DROPPED)) @ state_1d[0] - reward.model.shift
    assert logits[1][:, 0] == pytest.approx(wanted_M.detach().numpy(), abs=1e-4)
    spread = logits[1][:, 0].std() / math.sqrt(MEMBERS)
    assert abs(logits[1][:, 0].mean() - said[0]) < 5 * spread


def test_the_command(run, capsys, tmp_path):
    words = ["collect", str(run / "recipe.yaml"), "--out", str(tmp_path)]
    two = ["--reward", f"{run}/rewards.py:short", "--reward", f"{run}/rewards.py:long"]
    assert cli.main([*words, "--budget", "4", "--choose", "uncertain", *two]) == 0
    out = capsys.readouterr().out
    assert "4 of 18 pairs chosen (uncertain by" in out and "nats at most about which member is right" in out
    chosen = load_items(tmp_path / "to_judge.jsonl")
    assert len(chosen) == 4 and all(len(item.replies) == 2 for item in chosen)
    assert len({item.prompt for item in chosen}) == 4
    assert all(len(a.reply) != len(b.reply) for a, b in (item.replies for item in chosen)), "they differ about lengths"
    before = (tmp_path / "to_judge.jsonl").stat()
    assert cli.main([*words, "--budget", "4", "--choose", "uncertain", *two]) == 0
    assert (tmp_path / "to_judge.jsonl").stat() == before
    assert cli.main([*words, "--budget", "4", "--choose", "diverse"]) == 1
    assert "holds another choice (other: choose, rewards)" in capsys.readouterr().err

    more = ["--except", str(tmp_path / "to_judge.jsonl"), "--to", str(tmp_path / "more.jsonl"), "--budget", "99"]
    assert cli.main([*words, *more, "--choose", "uncertain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["chosen"]
    assert told["pairs"] == told["of"] == 14 and told["rewards"] == [str(run / "rm")], "the recipe's own by default"
    assert told["expected"]["nats"] > 0 and told["expected"]["nats_error"] > 0
    known = {pair.key for pair in pairs_of(chosen)}
    assert not known & {pair.key for pair in pairs_of(load_items(tmp_path / "more.jsonl"))}


def test_what_cannot_be_chosen(run, capsys, tmp_path):
    words = ["collect", str(run / "recipe.yaml"), "--out", str(tmp_path)]
    assert cli.main([*words, "--choose", "diverse"]) == 1
    assert "--choose says how pairs are chosen: add --budget N" in capsys.readouterr().err
    for name in ("summary.json", "chosen"):  # the summary of the one would be the other
        assert cli.main([*words, "--budget", "2", "--to", str(tmp_path / name)]) == 1
        assert "name a file that ends in .jsonl" in capsys.readouterr().err
    alone = [*words, "--budget", "2", "--choose", "uncertain", "--reward", f"{run}/rewards.py:short"]
    assert cli.main(alone) == 1
    assert "alone says nothing of how sure it is" in capsys.readouterr().err
    with pytest.raises(CollectError, match="a reward model of ours"):
        member_logits([f"{run}/rewards.py:long"], [item_of("one", "a")], Pieces(tmp_path / "p"), seed=0)
