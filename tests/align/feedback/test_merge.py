"""Judgments to comparisons: by hand, against another computation, and what is left out and why."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations

import pytest

from align.data.pairs import MARGIN_TABLES
from align.feedback.judgments import GRADES, JudgmentError
from align.feedback.merge import MergeOptions, merge
from align.feedback.provenance import provenance_of
from align.feedback.votes import matched
from tests.align.feedback.made import item, judgment

THREE = item("three", "a", "b", "c", category="talk", tags=("t",), round=2, tools=('{"name": "f"}',))


def pairs(judgments, on=THREE, **options):
    merged = merge([(on, one) for one in judgments], MergeOptions(**options))
    return [(one.chosen, one.rejected, one.grade) for one in merged.comparisons], dict(merged.left_out)


def test_one_annotators_ranks_by_hand():
    said = [judgment("three", "ann", [["r2"], ["r0", "r1"]], "significantly")]
    assert pairs(said) == ([("c", "a", 4.0), ("c", "b", 4.0)], {"a tie": 1})
    said = [judgment("three", "ann", [["r1"], ["r0"], ["r2"]], "slightly")]
    assert pairs(said)[0] == [("b", "a", 2.0), ("a", "c", None), ("b", "c", 2.0)]  # nobody said how far a is from c
    kept, left_out = pairs(said, pairs="best")
    assert kept == [("b", "a", 2.0), ("b", "c", 2.0)] and left_out == {"the better reply is not the best": 1}
    assert pairs(said, min_strength="better") == ([("a", "c", None)], {"less than better": 2})


def test_grades_are_those_that_margins_know():
    assert set(GRADES.values()) == set(MARGIN_TABLES["small"]) == set(MARGIN_TABLES["large"])
    assert MARGIN_TABLES["small"][GRADES["significantly"]] == 1 and MARGIN_TABLES["small"][GRADES["negligibly"]] == 0


def test_what_a_comparison_carries():
    said = [judgment("three", who, [["r0"], ["r1"]], "better") for who in ("ann", "ben", "eve")]
    said += [judgment("three", "cat", [["r1"], ["r0"]], "better"), judgment("three", "dan", [["r0", "r1"]])]
    (one,) = merge([(THREE, j) for j in said[1:] + said[:1]]).comparisons
    assert (one.prompt, one.category, one.tags, one.tools) == (THREE.prompt, "talk", ("t",), THREE.tools)
    said_so = provenance_of(one.provenance)
    assert (said_so.item, one.round, said_so.asked) == ("three", 2, 5)
    assert (said_so.annotators, said_so.against, said_so.tied) == (("ben", "eve", "ann"), ("cat",), ("dan",))
    assert (said_so.chosen.source, said_so.rejected.source) == ("s0", "s1")
    assert said_so.rejected.sampling == {"temperature": 1}
    assert one.swapped().provenance is None and provenance_of({"of": "another tool"}) is None is provenance_of(None)


def test_a_majority_is_more_than_half_of_all_who_judged():
    first, second, tie = ([["r0"], ["r1"]], "better"), ([["r1"], ["r0"]], "slightly"), ([["r0", "r1"]], None)
    bad = ([], None)

    def of(*said, **options):
        made = [
            judgment("three", f"a{at}", ranking, strength, shown=("r0", "r1"), all_bad=not ranking)
            for at, (ranking, strength) in enumerate(said)
        ]
        return pairs(made, **options)

    assert of(first, second) == ([], {"annotators disagree": 1})
    assert of(first, second, first) == ([("a", "b", 3.0)], {})
    assert of(first, tie) == ([], {"annotators disagree": 1}) and of(first, tie, tie) == ([], {"a tie": 1})
    assert of(first, bad, bad) == ([], {"all replies are bad": 1})
    strong = ([["r0"], ["r1"]], "significantly")
    assert of(first, strong, strong, first)[0] == [("a", "b", 3.0)]  # the lower middle one, a grade of the scale
    assert of(first, second, tie, votes="all") == ([("a", "b", 3.0), ("b", "a", 2.0)], {"a tie": 1})


def test_all_bad_gives_no_pair_but_by_option():
    said = [judgment("three", "ann", [["r0"], ["r1"]], "better", all_bad=True)]
    assert pairs(said) == ([], {"all replies are bad": 1})
    assert pairs(said, all_bad=True) == ([("a", "b", 3.0)], {})
    bad = [judgment("three", "ann", [], shown=("r0", "r1"), all_bad=True)]
    assert pairs(bad, all_bad=True) == ([], {"all replies are bad": 1})


def test_an_unsafe_reply_is_never_chosen_whoever_flagged_it():
    said = [judgment("three", "ann", [["r0"], ["r1"], ["r2"]], "better"), judgment("three", "ben", [["r1"], ["r2"]])]
    flagged = judgment("three", "cat", [["r1", "r0"]], unsafe=("r0",))
    kept, left_out = pairs([*said, flagged], pairs="best")
    assert kept == [("b", "c", None)]  # b is the best of the safe ones
    assert left_out == {"annotators disagree": 1, "the better reply is flagged as unsafe": 1}
    assert pairs([*said, flagged], votes="all")[1]["the better reply is flagged as unsafe"] == 2
    worse = judgment("three", "ann", [["r1"], ["r0"]], "better", unsafe=("r0",))
    (one,) = merge([(THREE, worse)]).comparisons
    assert one.tags == ("t", "rejected_unsafe")


def test_an_edit_of_what_another_flagged_is_chosen_only_of_who_flagged_it_too():
    edit = {"of": "r0", "text": "a!"}
    knew = judgment("three", "ann", [["r0"], ["r1"]], edited=edit, unsafe=("r0",))
    unaware = judgment("three", "ben", [["r0"], ["r1"]], edited={"of": "r0", "text": "a, edited"})
    kept, left_out = pairs([knew, unaware])
    assert kept == [("a!", "a", None), ("a!", "b", None)]
    assert left_out["edited, of a reply that another flagged as unsafe"] == 1


def test_an_edited_reply_is_above_its_original_and_what_that_was_better_than():
    edit = {"of": "r0", "text": "a!"}
    said = [judgment("three", "ann", [["r0"], ["r1"], ["r2"]], "better", edited=edit)]
    kept, _ = pairs(said)
    assert kept[:3] == [("a!", "a", None), ("a!", "b", 3.0), ("a!", "c", 3.0)] and len(kept) == 6
    assert ("a!", "a", None) in pairs(said, min_strength="significantly")[0]
    others = [judgment("three", who, [["r1"], ["r0"]], "better") for who in ("ben", "cat")]
    kept, _ = pairs([*said, *others])
    assert [one[:2] for one in kept if one[0] == "a!"] == [("a!", "a"), ("a!", "c")]  # two found b better than a
    first = merge([(THREE, one) for one in said]).comparisons[0]
    assert first.tags == ("t", "edited")
    written = provenance_of(first.provenance).chosen
    assert (written.source, written.edited_by) == ("s0", ("ann",))
    bad = judgment("three", "ann", [], shown=("r0", "r1"), all_bad=True, unsafe=("r0",), edited=edit)
    assert pairs([bad]) == ([("a!", "a", None)], {"all replies are bad": 1})
    same = judgment("three", "ann", [["r0"], ["r1"]], edited={"of": "r0", "text": "a "})
    twice = judgment("three", "ben", [["r0"], ["r1"]], edited={"of": "r0", "text": "a "})
    assert pairs([same, twice]) == ([("a ", "b", None), ("a", "b", None)], {"both replies are the same": 1})


def test_same_and_empty_replies_are_no_pair():
    on = item("x", "same", "same ", " ")
    said = [judgment("x", "ann", [["r0"], ["r1"], ["r2"]], "better")]
    assert pairs(said, on) == ([], {"both replies are the same": 1, "an empty reply": 2})


def test_judgments_of_other_items_are_counted_and_replies_that_are_not_there_refused():
    mine, other = judgment("three", "ann", [["r0"], ["r1"]]), judgment("four", "ann", [["r0"], ["r1"]])
    judged, others = matched([THREE], [mine, other])
    assert (judged, others) == ([(THREE, mine)], 1)
    with pytest.raises(JudgmentError, match="none of the 1 judgments is on one of the 1 items"):
        matched([THREE], [other])
    with pytest.raises(JudgmentError, match="reply 'r7', which item three does not have"):
        matched([THREE], [judgment("three", "ann", [["r0"], ["r7"]])])


def by_another_computation(on, judgments, least):
    """The majority's pairs and their grades, counted from ranks pair by pair."""
    found = set()
    for a, b in combinations([reply.id for reply in on.replies], 2):
        signs, grades = Counter(), {1: [], -1: []}
        for one in judgments:
            place = {name: at for at, rank in enumerate(one.ranking) for name in rank}
            if a in place and b in place:
                gap = place[b] - place[a]
                sign = (gap > 0) - (gap < 0)
                signs[sign] += 1
                if sign and 0 in (place[a], place[b]) and one.strength:
                    grades[sign].append(GRADES[one.strength])
        total = sum(signs.values())
        for sign, names in ((1, (a, b)), (-1, (b, a))):
            if total and signs[sign] > total / 2:
                own = sorted(grades[sign])
                grade = own[(len(own) - 1) // 2] if own else None
                if grade is None or grade >= least:
                    found.add((*names, grade))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_against_another_computation(seed):
    rng = random.Random(seed)
    texts = [f"text {at}" for at in range(4)]
    for number in range(40):
        on = item(f"i{number}", *texts)
        said = []
        for who in range(rng.randint(1, 4)):
            shown = rng.sample([reply.id for reply in on.replies], rng.randint(2, 4))
            ranks = {name: rng.randint(0, 2) for name in shown}
            ranking = [own for at in range(3) if (own := [name for name in shown if ranks[name] == at])]
            strength = rng.choice([*GRADES, None]) if len(ranking) > 1 else None
            said.append(judgment(on.id, f"a{who}", ranking, strength, shown=tuple(shown)))
        word = rng.choice([None, "slightly", "better"])
        found, _ = pairs(said, on, min_strength=word)
        names = {text: f"r{at}" for at, text in enumerate(texts)}
        assert {(names[a], names[b], grade) for a, b, grade in found} == by_another_computation(
            on, said, GRADES.get(word, 0)
        )
        assert len(found) == len(set(found))
