import pytest

from align.evaluation.samples import (
    fitting_prompts,
    heldout_prompts,
    replies_by_category,
    reply_figures,
    sample_replies,
)
from data_formats.records import Demonstration, Message
from rollouts.scripted import ScriptedEngine
from tests.tiny_models import byte_tokenizer


def talk(*contents, system=None, category=""):
    roles = ("user", "assistant") * len(contents)
    turns = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    return Demonstration(tuple([Message("system", system), *turns] if system else turns), category)


def test_prompts_end_before_the_last_reply_and_are_different():
    demos = [talk("a", "1"), talk("a", "2"), talk("b", "1", "c", "2"), talk("d"), talk("e", "1", system="s")]
    prompts = heldout_prompts(demos, 10)
    assert [prompt.reference for prompt in prompts] == ["1", "2", "1"]
    found = [[turn.content for turn in prompt.messages] for prompt in prompts]
    assert found == [["a"], ["b", "1", "c"], ["s", "e"]]  # a second reply to "a" is no second prompt, "d" has no reply
    assert len(heldout_prompts(demos, 2)) == 2
    assert heldout_prompts(demos, 0) == []


def test_prompts_that_are_too_long_are_not_asked():
    prompts = heldout_prompts([talk("a", "1"), talk("a" * 40, "1")], 2)
    fit = fitting_prompts(byte_tokenizer(), prompts, 40)
    assert fit == prompts[:1]
    assert fitting_prompts(byte_tokenizer(), [], 40) == []


def test_a_row_holds_prompt_reply_and_reference():
    tokenizer = byte_tokenizer()
    prompts = heldout_prompts([talk("Q", "1", category="maths"), talk("b", "2")], 2)
    (asked,), end = tokenizer("Q")["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")
    engine = ScriptedEngine(lambda prompt, number: [*tokenizer("yes")["input_ids"], *([end] * (asked in prompt))])
    first, second = sample_replies(engine, tokenizer, prompts, 4, seed=0)
    assert first == {
        "prompt": [{"role": "user", "content": "Q"}],
        "reply": "yes",
        "finished": True,
        "tokens": 4,
        "reference": "1",
        "category": "maths",
    }
    assert (second["reply"], second["finished"], second["tokens"]) == ("yes", False, 3)
    assert sample_replies(engine, tokenizer, [], 4, seed=0) == []


SAMPLES = [
    {"reply": "x", "finished": True, "tokens": 2, "category": "maths"},
    {"reply": "x", "finished": True, "tokens": 2, "category": "maths"},
    {"reply": "y", "finished": False, "tokens": 5, "category": ""},
]


def test_reply_figures_by_hand():
    assert reply_figures(SAMPLES) == {
        "replies": 3,
        "end_rate": pytest.approx(2 / 3),
        "distinct": pytest.approx(2 / 3),
        "reply_tokens": 3.0,
    }
    assert reply_figures([]) == {}


def test_only_categories_with_a_name_have_figures_of_their_own():
    figures = {"replies": 2, "end_rate": 1.0, "distinct": 0.5, "reply_tokens": 2.0}
    assert replies_by_category(SAMPLES) == {"maths": figures}
