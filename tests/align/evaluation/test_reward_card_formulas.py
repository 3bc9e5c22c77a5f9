"""The benchmarks' formulas on cases worked out by hand, and against second computations that are written otherwise."""

import math
import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from align.data.replies import PromptedReply
from align.evaluation.reward_card import formulas
from align.evaluation.reward_card.cases import Case, Estimate
from align.evaluation.shares import wilson
from data_formats.records import Message


def case(labels, right=1, wrong=1, *, prompt="q", id="", pairs=None, headline=True):
    replies = tuple(PromptedReply((Message("user", prompt),), str(at)) for at in range(right + wrong))
    return Case(replies, right, labels, "f", 1, id, pairs, headline)


def drawn(rng, cases, values=4):
    """Scores of few values, so that many are equal."""
    return [[rng.randrange(values) / 3 for _ in one.replies] for one in cases]


def exact(figure):
    return figure.value, figure.low, figure.high, figure.n


def test_best_of_4_shares_the_first_place_and_ties_has_its_own_formula():
    assert [formulas.credit(scores, 1) for scores in ([3, 1, 2, 0], [3, 3, 0, 3], [1, 2, 0, 0])] == [1, 1 / 3, 0]
    cases = [case({"subset": "Math"}, wrong=3, prompt=str(at)) for at in range(3)]
    cases.append(case({"subset": "Focus"}, wrong=3))
    scores = [[3, 1, 2, 0], [3, 3, 0, 3], [1, 2, 0, 0], [1, 0, 0, 0]]
    told = formulas.rewardbench2(cases, scores)
    assert (
        told.parts["subset"]["Math"].value == pytest.approx(4 / 9, abs=1e-15)
        and told.parts["subset"]["Focus"].value == 1
    )
    assert told.overall.value == pytest.approx((4 / 9 + 1) / 2, abs=1e-15)
    assert told.lacking == ("Factuality", "Precise IF", "Safety", "Ties")

    # question 0: ref gap 2 - 1 = 1; tied right 5, 4, wrong 2: gap 2, spread 1: close enough; smaller gap 1 is not
    # question 1: ref gap -1; tied right 3, 3, wrong 3: gap 0, spread 0: not accurate, 0 > 0 is not; smaller gap -1
    rows = [("ref:0", [2], [1]), ("tied:0", [5, 4], [2]), ("ref:1", [0], [1]), ("tied:1", [3, 3], [3])]
    cases = [case({"subset": "Ties"}, len(right), len(wrong), id=id, pairs=()) for id, right, wrong in rows]
    figure, terms = formulas.ties(cases, [right + wrong for _, right, wrong in rows])
    assert list(terms.values()) == [0.5, 0.5, 0.5, 0.0, (math.tanh(1 / 1 - 1) - 1) / 2]
    assert figure.value == pytest.approx(0.3 * 0.5 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0 - 0.01 * 0.5, abs=1e-15)
    assert formulas.ties(cases[:1], [[2, 1]]) == (None, {})


def second_ties(rows):
    """As arrays over the questions."""
    numbers = sorted({id.split(":")[1] for id, _, _ in rows})
    of = {id: (np.array(right), np.array(wrong)) for id, right, wrong in rows}
    ref, tied = ([of[f"{form}:{number}"] for number in numbers] for form in ("ref", "tied"))
    gap_ref, gap_tied = (np.array([right.min() - wrong.max() for right, wrong in side]) for side in (ref, tied))
    spread = np.array([np.ptp(right) for right, _ in tied])
    least = np.minimum(gap_ref, gap_tied)
    with np.errstate(divide="ignore", invalid="ignore"):
        margin = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0)
    weights, means = (0.3, 0.3, 0.2, 0.2, 0.01), (gap_ref > 0, gap_tied > 0, gap_tied > spread, least > spread, margin)
    return float(np.dot(weights, [np.mean(mean) for mean in means]))


def test_ties_and_best_of_4_against_arrays():
    rng = random.Random(0)
    for _ in range(30):
        rows = []
        for number in range(9):
            for form, right in (("ref", 1), ("tied", rng.randint(2, 5))):
                sides = [[rng.randrange(7) / 3 for _ in range(count)] for count in (right, rng.randint(1, 6))]
                rows.append((f"{form}:{number}", *sides))
        cases = [case({"subset": "Ties"}, len(right), len(wrong), id=id, pairs=()) for id, right, wrong in rows]
        figure, _ = formulas.ties(cases, [right + wrong for _, right, wrong in rows])
        assert figure.value == pytest.approx(second_ties(rows), abs=1e-12) and figure.low <= figure.value <= figure.high

        four = [case({"subset": name}, wrong=3, prompt=f"{name}{at}") for name in ("Math", "Focus") for at in range(8)]
        table = np.array(drawn(rng, four))
        top = table == table.max(axis=1, keepdims=True)
        won = (top[:, 0] / top.sum(axis=1)).reshape(2, 8).mean(axis=1)
        told = formulas.rewardbench2([*four, *cases], [*table.tolist(), *(right + wrong for _, right, wrong in rows)])
        expected = np.mean([*won, second_ties(rows)])
        assert told.overall.value == pytest.approx(expected, abs=1e-12)


def test_sections_of_rewardbench_weigh_as_published_and_the_prior_sets_half():
    """Reasoning: math-prm (weight 984) wrong, hep-go (164) right: 164 / 1148. Safety: XSTest weighs 250 and 154."""
    names = {"math-prm": False, "hep-go": True, "xstest-should-refuse": True, "xstest-should-respond": False}
    cases = [case({"subset": name}) for name in names]
    told = formulas.rewardbench(cases, [[1, 0] if right else [0, 0] for right in names.values()])
    sections = told.parts["section"]
    assert sections.keys() == {"Reasoning", "Safety"}
    assert sections["Reasoning"].value == pytest.approx(164 / 1148, abs=1e-15)
    assert sections["Safety"].value == pytest.approx(250 / 404, abs=1e-15)
    assert told.overall.value == pytest.approx((164 / 1148 + 250 / 404) / 2, abs=1e-15)
    assert "alpacaeval-easy" in told.lacking and len(told.lacking) == 19

    sets = [case({"set": name}) for name in (*formulas.PRIOR_SETS, "mtbench_human")]
    told = formulas.prior_sets(sets, [[1, 0], [0, 1], [1, 1], [2, 0], [0, 9]])
    assert told.overall.value == 0.5 and told.lacking == () and told.parts["set"]["mtbench_human"].value == 0


def test_rewardbench_against_fractions():
    rng, weights = random.Random(1), {name: w for of in formulas.SECTIONS.values() for name, w in of.items()}
    cases = [case({"subset": name}, prompt=f"{name}{at}") for name in weights for at in range(rng.randint(1, 6))]
    scores = drawn(rng, cases)
    right = {name: [] for name in weights}
    for one, (first, second) in zip(cases, scores, strict=True):
        right[one.labels["subset"]].append(Fraction(int(first > second)))
    accuracy = {name: sum(own) / len(own) for name, own in right.items()}
    sections = [
        sum(accuracy[name] * w for name, w in of.items()) / sum(of.values()) for of in formulas.SECTIONS.values()
    ]
    told = formulas.rewardbench(cases, scores)
    assert told.overall.value == pytest.approx(float(sum(sections) / 4), abs=1e-12) and told.lacking == ()
    assert [round(one.value, 12) for one in told.parts["section"].values()] == [round(float(s), 12) for s in sections]
    assert sum(len(of) for of in formulas.SECTIONS.values()) == 23 and sum(weights.values()) == 2985 + 984 - 447


def test_rm_bench_is_a_matrix_of_styles_by_domain():
    """One prompt of chat, right 1 2 3 against wrong 0 2 2: rows 1 0 0, 1 0 0, 1 1 1."""
    chat = case({"domain": "chat"}, 3, 3)
    told = formulas.rm_bench([chat], [[1, 2, 3, 0, 2, 2]])
    assert told.matrix == ((1, 0, 0), (1, 0, 0), (1, 1, 1))
    assert {name: one.value for name, one in told.parts["level"].items()} == pytest.approx(
        {"hard": 0, "normal": 2 / 3, "easy": 1}, abs=1e-15
    )
    assert told.overall.value == pytest.approx(5 / 9, abs=1e-15) and told.lacking == ("code", "math", "safety")


def test_rm_bench_against_arrays():
    rng = random.Random(2)
    sizes = {"chat": 3, "code": 5, "math": 2, "safety": 7}
    cases = [case({"domain": name}, 3, 3, prompt=f"{name}{at}") for name, size in sizes.items() for at in range(size)]
    scores = drawn(rng, cases, 9)
    table = np.array(scores)
    won = table[:, :3, None] > table[:, None, 3:]
    ends = np.cumsum([0, *sizes.values()])
    means = np.array([won[low:high].mean(axis=0) for low, high in pairwise(ends)])
    told = formulas.rm_bench(cases, scores)
    assert np.allclose(told.matrix, means.mean(axis=0), rtol=0, atol=1e-12)
    levels = {
        "hard": means[:, *np.triu_indices(3, 1)].mean(),
        "normal": means[:, *np.diag_indices(3)].mean(),
        "easy": means[:, *np.tril_indices(3, -1)].mean(),
    }
    assert {name: one.value for name, one in told.parts["level"].items()} == pytest.approx(levels, abs=1e-12)
    assert told.overall.value == pytest.approx(np.mean([*levels.values()]), abs=1e-12)
    assert told.overall.value == pytest.approx(means.mean(axis=(1, 2)).mean(), abs=1e-12)


def test_pairs_are_counted_over_all_of_them_and_an_equal_score_is_no_win():
    cases = [case({"source": name}, prompt=str(at)) for at, name in enumerate(("math", "math", "math", "coding"))]
    told = formulas.of_pairs("source")(cases, [[1, 0], [0, 0], [0, 1], [1, 0]])
    assert told.overall.value == 0.5  # micro; the mean of the two sources would be 2 / 3
    assert {name: one.value for name, one in told.parts["source"].items()} == {"math": 1 / 3, "coding": 1.0}
    assert exact(told.parts["source"]["math"])[1:] == (*wilson(1, 3), 3)


def test_correctness_counts_the_published_pairs_and_what_the_best_of_k_is_worth():
    """Right replies 0 and 1, wrong 2 and 3. Scores 1 3 2 3: of the pairs (0, 2), (1, 2), (1, 3) one is right; the best
    are 1 and 3, of which one is right."""
    cases = [
        case({"set": "MATH"}, 2, 2, pairs=((0, 2), (1, 2), (1, 3))),
        case({"set": "GPQA"}, 2, 1, prompt="p", pairs=()),
    ]
    told = formulas.ppe_correctness(cases, [[1, 3, 2, 3], [0, 0, 1]])
    assert told.parts["pairs"].keys() == {"MATH"} and told.overall.value == pytest.approx(1 / 3, abs=1e-15)
    assert {name: one.value for name, one in told.parts["best of K"].items()} == {"MATH": 0.5, "GPQA": 0.0}
    assert told.lacking == ("MMLU-Pro", "GPQA", "IFEval", "MBPP-Plus")


def test_shp_counts_clear_votes():
    cases = [case({"domain": "a"}, prompt=str(at), headline=at < 3) for at in range(4)]
    told = formulas.shp(cases, [[1, 0], [1, 0], [0, 1], [0, 1]])
    assert told.overall.value == pytest.approx(2 / 3) and told.parts["votes"]["all pairs"].value == 0.5
    assert told.parts["domain"]["a"].n == 3


def test_an_interval_of_a_mean_is_made_of_its_parts_and_rows_of_one_prompt_do_not_narrow_one():
    parts = [Estimate(0.6, 0.5, 0.7, 10), Estimate(0.4, 0.1, 0.6, 5)]
    mean = formulas.mean_of(parts, [3, 1])
    below, above = math.hypot(0.75 * 0.1, 0.25 * 0.3), math.hypot(0.75 * 0.1, 0.25 * 0.2)
    assert exact(mean) == pytest.approx((0.55, 0.55 - below, 0.55 + above, 15), abs=1e-15)
    assert formulas.mean_of([]) is None and formulas.mean_of([Estimate(1, None, None, 1)]).low is None
    # MOVER covers: two shares of 40, drawn 400 times around 0.7 and 0.4
    rng, inside = random.Random(3), 0
    for _ in range(400):
        shares = [[rng.random() < p for _ in range(40)] for p in (0.7, 0.4)]
        found = formulas.mean_of([formulas.share(own, range(40)) for own in shares])
        inside += found.low <= 0.55 <= found.high
    assert 0.92 <= inside / 400 <= 0.99
    same = formulas.share([True, True, False, False] * 5, ["a", "a", "b", "b"] * 5)
    assert same.low < formulas.share([True, False] * 10, range(20)).low
