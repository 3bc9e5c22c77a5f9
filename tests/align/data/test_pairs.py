import math

import pytest

from align.data.pairs import (
    Pair,
    binarised,
    compared,
    grade_margin,
    make_groups,
    plain_groups,
    ranked_pairs,
    strong_enough,
)
from data_formats.errors import DataError
from data_formats.records import Comparison, Message, Reply, Scored

ASK = (Message("user", "q"),)


def pair(chosen="a", rejected="b", **fields):
    return Comparison(ASK, chosen, rejected, **fields)


def test_margins_of_llama_2_table_27():
    assert [grade_margin(grade, "small") for grade in (4, 3, 2, 1)] == [1, 2 / 3, 1 / 3, 0]
    assert [grade_margin(grade, "large") for grade in (4, 3, 2, 1)] == [3, 2, 1, 0]
    assert grade_margin(2.5, "scale", 0.2) == pytest.approx(0.5)
    assert grade_margin(4, "none") == grade_margin(None, "large") == 0
    with pytest.raises(DataError, match=r"grade 2\.5 is not one of 1, 2, 3, 4"):
        grade_margin(2.5, "small")


@pytest.mark.parametrize("grade", [math.nan, math.inf])
def test_a_grade_that_is_no_number_is_named_with_its_record(grade):
    with pytest.raises(DataError, match=r"preference 1 \(file\.jsonl\): grade (nan|inf)"):
        make_groups([pair(), pair(grade=grade, source="file.jsonl")], margin="small")


def test_all_pairs_of_a_ranking_ties_dropped_or_soft():
    pairs, ties = ranked_pairs([2.0, 3.0, 2.0, None])
    assert (pairs, ties) == ((Pair(1, 0), Pair(1, 2)), 1)
    soft, _ = ranked_pairs([2.0, 3.0, 2.0, None], "soft")
    assert Pair(0, 2, target=0.5) in soft and len(soft) == 3
    assert len(ranked_pairs([4.0, 3.0, 2.0, 1.0])[0]) == 6
    with pytest.raises(DataError, match="score nan"):
        ranked_pairs([1.0, math.nan])


def test_what_gives_no_pair_is_counted():
    same = Scored(ASK, (Reply("x", 1.0), Reply("y", 1.0)))
    groups, counts = make_groups([pair(), pair("z", "z"), same])
    assert [group.replies for group in groups] == [("a", "b")]
    assert counts == {"pairs of identical replies": 1, "prompts without a pair": 2, "ties dropped": 1}
    assert strong_enough([pair(grade=4), pair(grade=2), pair()], 3) == ([pair(grade=4), pair()], {"grade below 3": 1})


def test_binarised_pairs_put_the_marker_before_the_reply():
    groups, _ = make_groups([pair()])
    assert [(group.replies, group.pairs) for group in binarised(groups)] == [
        (("GOOD:a", "BAD:a"), (Pair(0, 1),)),
        (("BAD:b", "GOOD:b"), (Pair(0, 1),)),
    ]


def test_margins_of_scored_replies_are_their_differences_and_a_tie_has_none():
    record = Scored(ASK, (Reply("a", 3.0), Reply("b", 1.0), Reply("c", 1.0)))
    (group,), counts = make_groups([record], margin="scale", margin_scale=0.5, ties="soft")
    assert group.pairs == (Pair(0, 1, 1.0), Pair(0, 2, 1.0), Pair(1, 2, 0.0, 0.5))
    assert counts == {"ties as soft labels": 1}
    (group,), _ = make_groups([record], margin="small")
    assert group.pairs == (Pair(0, 1, 1 / 3), Pair(0, 2, 1 / 3))
    with pytest.raises(DataError, match=r"preference 0 .*: grade 2\.5 is not one of 1, 2, 3, 4"):
        make_groups([Scored(ASK, (Reply("a", 3.5), Reply("b", 1.0)))], margin="small")


def test_comparisons_of_a_prompt_and_source_become_one_group():
    records = [pair("a", "b", source="x"), pair("c", "a", source="x"), pair("a", "b", source="y")]
    groups, _ = make_groups(records, join=True)
    assert [group.replies for group in groups] == [("a", "b", "c"), ("a", "b")]
    assert groups[0].pairs == (Pair(0, 1), Pair(2, 0))


def test_rankings_are_measured_on_their_single_pairs():
    ranking = Scored(ASK, (Reply("e", 4.0), Reply("c", 2.0), Reply("r", 1.0)), "help", "s")
    about = {"category": "help", "source": "s"}
    found, counts = compared([pair(), ranking, Scored(ASK, (Reply("x", 1.0), Reply("y", 1.0)))])
    assert found == [
        pair(),
        *(pair(*texts, grade=grade, **about) for *texts, grade in (("e", "c", 2.0), ("e", "r", 3.0), ("c", "r", 1.0))),
    ]
    assert counts["tie"] == 1


def test_conversations_that_part_keep_their_turns_and_stay_alone():
    turns = [(Message("assistant", text), Message("user", "p")) for text in ("one", "two")]
    whole = pair("a", "a", chosen_turns=turns[0], rejected_turns=turns[1])
    groups, counts = make_groups([whole, pair("a", "b"), whole], join=True)
    assert [group.between for group in groups] == [tuple(turns), (), tuple(turns)]
    assert not counts  # equal last replies to different turns are no equal replies
    first, second = binarised(groups[:1])
    assert (first.replies, first.between) == (("GOOD:a", "BAD:a"), (turns[0],) * 2)
    assert (second.replies, second.between) == (("BAD:a", "GOOD:a"), (turns[1],) * 2)


def test_thoughts_make_replies_different_and_stand_in_their_text():
    thought = pair("51", "51", chosen_reasoning="17*3 = 51", rejected_reasoning="a guess")
    scored = Scored(ASK, (Reply("51", 1.0, reasoning="17*3 = 51"), Reply("51", 0.0)))
    right, guess = "<think>\n17*3 = 51\n</think>\n\n51", "<think>\na guess\n</think>\n\n51"
    groups, counts = make_groups([thought, scored, pair("51", "51")])
    assert [group.replies for group in groups] == [(right, guess), (right, "51")]
    assert counts == {"pairs of identical replies": 1, "prompts without a pair": 1}
    assert plain_groups([thought])[0].replies == (right, guess)
    (joined,), _ = make_groups([thought, scored], join=True)
    assert (joined.replies, joined.pairs) == ((right, guess, "51"), (Pair(0, 1), Pair(0, 2)))
    marked = [group.replies for group in binarised(groups[:1])]
    begins = right.removesuffix("51"), guess.removesuffix("51")
    assert marked == [(begins[0] + "GOOD:51", begins[0] + "BAD:51"), (begins[1] + "BAD:51", begins[1] + "GOOD:51")]
    assert [(one.chosen_reasoning, one.rejected_reasoning) for one in compared([scored])[0]] == [("17*3 = 51", "")]
