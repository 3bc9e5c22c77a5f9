"""The study of the rounds, without what it trains: its arms are recipes that check, and its table."""

import argparse

import pytest

from align.recipe.rounds import round_recipe
from examples.experiments import rounds
from tests.align.stages.test_quickstart_small import SIZES


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(out=tmp_path, rounds=3, error=10.0, set=[], arms=rounds.ARMS, seeds=[0])


def test_the_arms_differ_in_whose_replies_are_judged(args):
    fresh, first, none = (rounds.recipe_of(args, 0, arm) for arm in rounds.ARMS)
    models = [{one.model for one in recipe.collect.sources} for recipe in (fresh, first)]
    assert models == [{"newest"}, {"sft"}] and fresh.rm == first.rm and fresh.ppo == first.ppo
    assert none.rm.max_steps == 1 and none.ppo.reward_from == str(args.out / "seed-0/fresh/round-1/rm/model")
    assert round_recipe(none, 2).ppo.reward_from == none.ppo.reward_from
    assert {recipe.rounds.judge.function for recipe in (fresh, first, none)} == {f"{args.out}/seed-0/people.py:people"}


def test_the_table(args):
    row = dict.fromkeys(rounds.COLUMNS, 0.5) | {"comparisons": 1234, "heldout": None}
    seeds = [{(arm, number): row for arm in rounds.ARMS for number in (1, 2, 3)} for _ in range(2)]
    lines = rounds.table(args, seeds).splitlines()
    assert len(lines) == 2 + 9
    assert lines[2] == (
        "| fresh | 1 | 1234 (1234, 1234) |  | 50.0 (50.0, 50.0) | 50.0 (50.0, 50.0) | 0.50 (0.50, 0.50) | "
        "0.50 (0.50, 0.50) | 50.0 (50.0, 50.0) | 0.50 (0.50, 0.50) |"
    )


@pytest.mark.slow
def test_the_study_in_miniature(tmp_path, capsys):
    sizes = [f"{section}.{key}={value}" for section, values in SIZES.items() for key, value in values.items()]
    words = [
        "--seeds",
        "5",
        "--out",
        str(tmp_path),
        "--rounds",
        "2",
        "--arms",
        "fresh",
        "none",
        "--set",
        *sizes,
        "rm.data=[tinyworld:comparisons]",
    ]
    assert rounds.main(words) == 0
    table = capsys.readouterr().out.partition("| arm |")[2].splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in table[2:]] == [
        "fresh",
        "fresh",
        "none",
        "none",
    ]
    before = (tmp_path / "seed-5/none/round-2/ppo/summary.json").stat().st_mtime_ns
    assert rounds.main(words) == 0  # what is there is not made again
    assert (tmp_path / "seed-5/none/round-2/ppo/summary.json").stat().st_mtime_ns == before
