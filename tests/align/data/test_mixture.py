"""What every optimizer step takes of each part of the data: all counts by hand."""

import json
import random
from collections import Counter
from math import isclose

import pytest

from align.data.mixture import MixedOrder, with_epochs
from align.data.packing import PackedRows
from align.data.prompts import MixedPromptSampler
from align.recipe import RecipeError
from align.recipe.fields import Source
from align.recipe.mixture_section import MixtureSection
from align.trainers.sampling import MixedSampler
from data_formats.errors import DataError, EmptyDatasetError
from data_formats.mixing import Dealer

WEB, GOOD = "web", "good"
PARTS = [WEB] * 30 + [GOOD] * 10
ANNEALED = {"weights": {WEB: 1, GOOD: 0}, "anneal": [{"start": 0.5, "weights": {WEB: 0, GOOD: 2}}]}


def order(section, parts=PARTS, rows_per_step=10, steps=20, seed=0):
    made = MixtureSection.model_validate_json(json.dumps(section), strict=True)
    return MixedOrder(made, parts, rows_per_step=rows_per_step, steps=steps, seed=seed)


def counts(mixed, steps, parts=PARTS):
    """Rows of GOOD in each step, counted from the rows themselves."""
    return [Counter(parts[row] for row in mixed.rows(step))[GOOD] for step in range(steps)]


def test_a_source_that_has_lost_all_of_its_rows_is_named():
    with pytest.raises(RecipeError, match=r"mixture\.weights: no row of 'good' is left to train on"):
        order({"weights": {WEB: 3, GOOD: 1}}, parts=[WEB] * 3)
    with pytest.raises(RecipeError, match=r"no category of the data is called 'good'"):
        order({"by": "category", "weights": {WEB: 3, GOOD: 1}}, parts=[WEB] * 3)


@pytest.mark.parametrize(
    ("section", "good"),
    [
        ({"weights": {WEB: 3, GOOD: 1}}, [2, 3] * 10),  # 2.5 of 10: owed 2.5 and 2.5, the first part is served first
        ({}, [2, 3] * 10),  # by size: 30 to 10
        ({"temperature": 2.0}, [4, 3, 4, 4, 3, 4, 4]),  # sqrt(30) to sqrt(10): 1 / (1 + sqrt(3)) = 0.366
        ({"weights": {WEB: 1, GOOD: 1}}, [5] * 20),
        # the last ten steps go from 0 to 1 by a tenth each
        (ANNEALED, [0] * 10 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (
            {
                "weights": {WEB: 4, GOOD: 1},
                "anneal": [
                    {"name": "more", "start": 0.25, "weights": {WEB: 1, GOOD: 1}, "change": "at_once"},
                    {"start": 0.9, "weights": {WEB: 0, GOOD: 1}, "change": "at_once"},
                ],
            },
            [2] * 5 + [5] * 13 + [10] * 2,
        ),
    ],
)
def test_each_step_takes_its_shares(section, good):
    mixed = order(section)
    assert counts(mixed, len(good)) == good
    assert all(len(mixed.rows(step)) == 10 for step in range(20))
    assert mixed.drawn(20)["parts"][GOOD]["drawn"] == sum(counts(mixed, 20))


def test_temperature_is_that_of_the_papers():
    """mT5 (2010.11934): |L| ** alpha with alpha 0.3; shares of 8000, 1000 and 1 by hand from the cube root."""
    parts = ["en"] * 8000 + ["zh"] * 1000 + ["sw"]
    assert order({"temperature": 3.0}, parts).shares(0) == pytest.approx({"en": 20 / 31, "zh": 10 / 31, "sw": 1 / 31})
    assert order({"temperature": 1e6}, parts).shares(0) == pytest.approx(dict.fromkeys(("en", "zh", "sw"), 1 / 3), 1e-4)
    assert isclose(sum(order({"temperature": 0.5}, parts).shares(0).values()), 1.0)


def test_a_part_is_gone_through_before_any_of_it_comes_again():
    mixed = order({"weights": {WEB: 1, GOOD: 1}})  # 5 of 10 good rows a step: a pass is two steps
    taken = [row for step in range(6) for row in mixed.rows(step) if PARTS[row] == GOOD]
    passes = [taken[at : at + 10] for at in (0, 10, 20)]
    assert all(sorted(one) == list(range(30, 40)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    part = mixed.drawn(20)["parts"]
    assert part == {
        WEB: {"rows": 30, "drawn": 100, "epochs": 3.333, "share": 0.5},
        GOOD: {"rows": 10, "drawn": 100, "epochs": 10.0, "share": 0.5},
    }


def test_any_step_can_be_asked_first_and_the_seed_decides():
    whole = [order(ANNEALED).rows(step) for step in range(20)]
    resumed = order(ANNEALED)
    assert [resumed.rows(step) for step in (13, 14, 3, 19)] == [whole[step] for step in (13, 14, 3, 19)]
    assert [order(ANNEALED, seed=1).rows(step) for step in range(20)] != whole
    assert counts(resumed, 22)[20:] == [10, 10]  # a loader looks one batch beyond the end


def test_phases_are_told_as_far_as_the_training_went():
    mixed = order(ANNEALED)
    assert mixed.drawn(20)["phases"] == [
        {"name": "start", "steps": [1, 10], "drawn": {WEB: 100, GOOD: 0}},
        {"name": "from 50%", "steps": [11, 20], "drawn": {WEB: 45, GOOD: 55}},
    ]
    assert mixed.drawn(12)["phases"][1] == {"name": "from 50%", "steps": [11, 12], "drawn": {WEB: 17, GOOD: 3}}
    assert len(mixed.drawn(7)["phases"]) == 1
    assert "phases" not in order({}).drawn(20)


def test_weights_that_do_not_fit_the_data_are_refused():
    for section, told in (
        (
            {"by": "category", "weights": {"wb": 1, GOOD: 1}},
            r"mixture.weights: no category .*'wb'; did you mean 'web'",
        ),
        ({"by": "category", "weights": {WEB: 1}}, "good of the data has no weight; give every one a weight"),
        (
            {"by": "category", "anneal": [{"start": 0.5, "weights": {GOOD: 1}}]},
            r"anneal.0.weights: web of the data has no weight; give every one a weight \(0 leaves it out\)",
        ),
    ):
        with pytest.raises(RecipeError, match=told):
            order(section)
    with pytest.raises(EmptyDatasetError, match="no rows to mix"):
        order({}, [])


def test_no_part_is_ever_two_rows_off():
    drawn = random.Random(0)
    for _ in range(200):
        names = [str(at) for at in range(drawn.randint(1, 6))]
        dealer, wanted, given = Dealer(names), dict.fromkeys(names, 0.0), Counter()
        for _ in range(30):
            raw = {name: drawn.random() * drawn.choice((0, 1)) for name in names}
            raw[names[0]] += 1e-3
            shares = {name: one / sum(raw.values()) for name, one in raw.items()}
            rows = drawn.choice((1, 7))
            dealt = dealer.deal(rows, shares)
            assert sum(dealt.values()) == rows and min(dealt.values()) >= 0
            given.update(dealt)
            wanted = {name: wanted[name] + rows * shares[name] for name in names}
            assert all(abs(given[name] - wanted[name]) < 2 for name in names)


def test_ranks_and_micro_batches_share_a_step():
    def dealt(world_size, micro):
        every = [
            MixedSampler([1 + row % 7 for row in range(40)], order(ANNEALED, rows_per_step=8), micro_batch_size=micro)
            if world_size == 1
            else MixedSampler(
                [1 + row % 7 for row in range(40)],
                order(ANNEALED, rows_per_step=8),
                micro_batch_size=micro,
                world_size=world_size,
                rank=rank,
            )
            for rank in range(world_size)
        ]
        found = []
        for epoch in range(4):  # of five steps each: 20 steps
            for sampler in every:
                sampler.set_epoch(epoch)
            batches = [list(sampler) for sampler in every]
            assert {len(own) for own in batches} == {len(every[0])}
            a_step = 8 // world_size // micro
            for at in range(0, len(batches[0]), a_step):
                found.append(sorted(row for own in batches for batch in own[at : at + a_step] for row in batch))
        return found

    whole = dealt(1, 8)
    assert dealt(2, 2) == whole == dealt(1, 4) and len(whole) == 20
    assert [sum(row >= 30 for row in step) for step in whole[-2:]] == [7, 8]


def test_prompts_go_on_where_they_were():
    sampler = MixedPromptSampler(order(ANNEALED))
    begun = [sampler.next() for _ in range(12)]
    state, later = sampler.state_dict(), [sampler.next() for _ in range(8)]
    again = MixedPromptSampler(order(ANNEALED))
    again.load_state_dict(state)
    assert [again.next() for _ in range(8)] == later and begun[0] == order(ANNEALED).rows(0)
    with pytest.raises(DataError, match="other prompts, another seed"):
        MixedPromptSampler(order(ANNEALED, seed=1)).load_state_dict(state)
    with pytest.raises(DataError, match="or no mixture"):
        again.load_state_dict({"size": 40, "seed": 0, "epoch": 0, "position": 3})


def test_epochs_repeat_rows_and_a_random_part_once_more():
    rows = [{"id": at, "part": part} for at, part in enumerate(["a"] * 4 + ["b"] * 10 + ["c"] * 2)]
    sources = (Source(path="a", epochs=2.5), Source(path="b", epochs=0.3), Source(path="c"))
    seen = Counter(row["id"] for row in with_epochs(rows, sources, 0))
    assert sorted(seen[at] for at in range(4)) == [2, 2, 3, 3]
    assert sorted(seen[at] for at in range(4, 14)) == [0] * 7 + [1] * 3
    assert [seen[14], seen[15]] == [1, 1]
    assert with_epochs(rows, sources, 0) == with_epochs(rows, sources, 0) != with_epochs(rows, sources, 1)
    assert with_epochs(rows, (Source(path="a"),), 0) is rows


def test_rows_of_a_part_are_packed_with_one_another():
    rows = [{"input_ids": [1] * length, "part": part} for part, length in (("a", 6), ("b", 4), ("a", 4), ("b", 5))]
    packed = PackedRows(rows, 10)
    assert [(one["part"], one["lengths"]) for one in packed] == [("a", [6, 4]), ("b", [5, 4])]
    alone = PackedRows([{"input_ids": row["input_ids"]} for row in rows], 10)
    assert [one["lengths"] for one in alone] == [[6, 4], [5, 4]] and "part" not in alone[0]
