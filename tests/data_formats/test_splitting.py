"""The held-out split: by prompt, stable, of about the share asked for."""

import random

import pytest

from data_formats import Comparison, Demonstration, Document, Message, Prompt, Reply, Scored, split_heldout
from data_formats.splitting import heldout_marks, prompt_key


def prompts(count):
    return [Prompt((Message("user", f"question {number}"),)) for number in range(count)]


def test_share_and_order():
    records = prompts(2000)
    train, heldout = split_heldout(records, 0.1)
    assert 140 < len(heldout) < 260  # 200 expected, standard deviation 13.4
    assert set(train) | set(heldout) == set(records) and len(train) + len(heldout) == 2000
    assert heldout == [record for record in records if record in set(heldout)]


def test_a_record_stays_on_its_side_whatever_surrounds_it():
    records = prompts(400)
    held = set(split_heldout(records, 0.2)[1])
    shuffled = records[:]
    random.Random(0).shuffle(shuffled)
    assert set(split_heldout(shuffled, 0.2)[1]) == held
    assert set(split_heldout(records[:200], 0.2)[1]) == held & set(records[:200])


def test_records_are_passed_on_as_soon_as_both_sides_have_one():
    records = prompts(2000)
    train, heldout = split_heldout(records, 0.1)
    left = iter(records)
    marks = heldout_marks(left, 0.1)
    first = [next(marks) for _ in range(200)]
    assert len(list(left)) >= 1700
    assert [record for record, _ in first] == records[:200]
    assert all(record in (heldout if held else train) for record, held in first)


def test_a_prompt_is_never_on_both_sides():
    records = [Comparison((Message("user", f"q{n % 50}"),), f"good {n}", "bad") for n in range(500)]
    train, heldout = split_heldout(records, 0.3)
    assert heldout and not {prompt_key(record) for record in train} & {prompt_key(record) for record in heldout}


def test_the_key_is_the_first_user_turn_normalised():
    first = (Message("system", "s"), Message("user", "cafe\u0301  au\nlait "))
    assert prompt_key(Prompt(first)) == "caf\u00e9 au lait"
    assert (
        prompt_key(Comparison((*first, Message("assistant", "x"), Message("user", "y")), "a", "b"))
        == "caf\u00e9 au lait"
    )
    assert prompt_key(Demonstration((*first, Message("assistant", "x")))) == "caf\u00e9 au lait"
    assert prompt_key(Document(" a  b ")) == "a b"


@pytest.mark.parametrize(("share", "sizes"), [(0.0, (2, 0)), (1.0, (0, 2)), (1e-9, (1, 1)), (1 - 1e-9, (1, 1))])
def test_two_prompts_give_each_side_one_unless_all_or_none_is_asked(share, sizes):
    assert tuple(map(len, split_heldout(prompts(2), share))) == sizes


def test_one_prompt_is_not_split():
    assert split_heldout(prompts(1), 1 - 1e-9) == (prompts(1), [])
    assert split_heldout([], 0.5) == ([], [])


def test_scored_replies_to_one_prompt_stay_on_one_side():
    records = [Scored((Message("user", f" q  {n % 40}"),), (Reply(f"r{n}", 1.0),)) for n in range(400)]
    train, heldout = split_heldout(records, 0.3)
    sides = [{record.prompt for record in side} for side in (train, heldout)]
    assert all(sides) and not sides[0] & sides[1] and len(train) + len(heldout) == 400
