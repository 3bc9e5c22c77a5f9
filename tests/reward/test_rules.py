import pytest

from data_formats.records import Message
from reward.protocol import Reward, RewardError, Sample
from reward.rules import ExactMatch, LengthWindow, RegexMatch, TagFormat, normalized, token_counter
from tests.tiny_models import byte_tokenizer


def samples(*completions, **columns):
    return [Sample((Message("user", "How many?"),), text, columns=columns) for text in completions]


def test_exact_match_after_stripping_blanks():
    rule = ExactMatch()
    assert isinstance(rule, Reward)
    assert rule.score(samples("Paris", " Paris\n", "paris", "Paris.", "", reference="Paris")) == [1, 1, 0, 0, 0]
    assert rule.score([]) == []


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("strip", "  a b \n", "a b"),
        ("spaces", "a \n\t b", "a b"),
        ("case", "Straße", "strasse"),
        ("punctuation", "it's, so!", "its so"),
        ("articles", "The cat ate an apple", "  cat ate   apple"),
        ("unicode", "４２（猫）", "42(猫)"),
    ],
)
def test_each_normalisation_does_its_own(step, text, expected):
    assert normalized(text, (step,)) == expected
    assert normalized(text, ()) == text


def test_normalisations_together_do_not_depend_on_the_order_they_are_named_in():
    steps = ("strip", "spaces", "articles", "punctuation", "case", "unicode")
    assert normalized(" The  Answer： 42. ", steps) == normalized(" The  Answer： 42. ", steps[::-1]) == "answer 42"


def test_any_of_several_answers_is_right():
    rule = ExactMatch(column="answers", missing=-1.0)
    assert [rule.score(samples("4", "5", answers=answers)) for answers in (["3", "4"], [4], [])] == [
        [1.0, 0.0],
        [1.0, 0.0],
        [-1.0, -1.0],
    ]


def test_a_prompt_without_reference_is_an_error_or_gets_what_was_said():
    with pytest.raises(RewardError, match=r"'exact_match': the prompt 'How many\?' has no 'reference'.*'missing'"):
        ExactMatch().score(samples("4", category="maths"))
    assert ExactMatch(missing=-0.5).score(samples("4", reference=None)) == [-0.5]


def test_another_column_may_hold_the_answer():
    assert ExactMatch(column="label").score(samples("4", reference="5", label=4)) == [1]


def test_regex_search_full_and_case():
    found = samples("the answer is 42", "42", "Answer 42", "x")
    assert RegexMatch(r"\d+").score(found) == [1, 1, 1, 0]
    assert RegexMatch(r"\d+", match="full").score(found) == [0, 1, 0, 0]
    assert RegexMatch(r"^answer", ignore_case=True).score(found) == [0, 0, 1, 0]


def test_a_bad_pattern_is_refused_when_it_is_loaded():
    with pytest.raises(ValueError, match=r"'mine': '\(a' is no regular expression"):
        RegexMatch("(a", name="mine")
    with pytest.raises(ValueError, match=r"\.\.\.' is no regular expression"):
        RegexMatch("(" * 5000, name="mine")


def test_a_pattern_that_takes_for_ever_is_stopped_and_does_not_match(caplog):
    rule = RegexMatch(r"(?:a|aa|a?b?a)+$", match="full", seconds=0.05)
    assert rule.score(samples("a" * 5000 + "c", "aa")) == [0, 1]
    (message,) = caplog.messages
    assert message.startswith(
        "reward 'regex': 1 of 2 replies count as wrong, since judging them takes more than 0.05 s"
    )


def test_length_in_characters_and_in_tokens():
    texts = samples("", "abc", "abcd", "猫")
    assert LengthWindow(1, 3).score(texts) == [0, 1, 0, 1]
    in_tokens = LengthWindow(3, 3, count=token_counter(byte_tokenizer()))
    assert in_tokens.score(texts) == [0, 1, 0, 1]  # a token a byte, 猫 has three
    assert LengthWindow(4).score(texts) == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<think>hm</think> 4", True),
        ("\n<think>\nhm\n</think>\n4", True),
        ("<think></think>4", True),
        ("4", False),
        ("<think>hm</think>", False),
        ("<think>hm</think> \n", False),
        ("so <think>hm</think> 4", False),
        ("<think>hm 4", False),
        ("</think>hm<think> 4", False),
        ("<think>a</think><think>b</think> 4", False),
        ("<think>a</think> 4 </think>", False),
    ],
)
def test_thoughts_and_then_the_answer(text, right):
    assert TagFormat().score(samples(text)) == [float(right)]


def test_two_tags_and_nothing_after():
    rule = TagFormat(("think", "answer"), then="nothing")
    good = "<think>hm</think>\n<answer>4</answer>\n"
    others = (good + "!", good.replace("\n<a", " so <a"), "<answer>4</answer><think>hm</think>", "<think><answer>")
    assert rule.score(samples(good, *others)) == [1, 0, 0, 0, 0]
