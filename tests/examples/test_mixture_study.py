"""The study of when good data comes, without what it trains: its arms draw the same rows, and its table."""

from align.data.mixture import MixedOrder
from align.recipe.lineage import init_origin
from examples.experiments import mixture


def test_the_arms_differ_in_when_the_good_rows_come(tmp_path):
    parts = [mixture.MIXED] * 4000 + [mixture.GOOD] * 500
    drawn, halves = {}, {}
    for arm in mixture.ARMS:
        section = mixture.recipe(tmp_path, 0, 200, arm).sft.mixture
        order = MixedOrder(section, parts, rows_per_step=32, steps=200, seed=0)
        drawn[arm], halves[arm] = order.taken(200)[mixture.GOOD], order.taken(100)[mixture.GOOD]
    assert drawn == {"throughout": 800, "last": 800, "first": 800, "last, linear": 808}
    assert halves == {"throughout": 400, "last": 0, "first": 800, "last, linear": 0}
    assert init_origin(mixture.recipe(tmp_path, 0, 200, "last"), "sft").value == str(tmp_path / "base/model")


def test_the_table():
    def summary(loss):
        by_category = {kind: {"heldout_loss": loss} for kind in ("good", "mixed")}
        return {"mixture": {"parts": {mixture.GOOD: {"drawn": 800}}}, "by_category": by_category}

    seeds = [{arm: summary(at + 0.1 * seed) for at, arm in enumerate(mixture.ARMS, 1)} for seed in (0, 1)]
    lines = list(mixture.rows(seeds))
    assert lines[0] == ["throughout", "800", "1.0500", "", "1.0500", ""]
    assert lines[2] == ["first", "800", "3.0500", "+2.0000, +2.0000", "3.0500", "+2.0000, +2.0000"]
