import pytest

from align.stages.sft import heldout_prompts, reply_figures
from data_formats.records import Demonstration, Message


def talk(*contents, system=None):
    roles = ("user", "assistant") * len(contents)
    turns = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    return Demonstration(tuple([Message("system", system), *turns] if system else turns))


def test_prompts_end_before_the_last_reply_and_are_different():
    demos = [talk("a", "1"), talk("a", "2"), talk("b", "1", "c", "2"), talk("d"), talk("e", "1", system="s")]
    prompts = heldout_prompts(demos, 10)
    assert [prompt.reference for prompt in prompts] == ["1", "2", "1"]
    found = [[turn.content for turn in prompt.messages] for prompt in prompts]
    assert found == [["a"], ["b", "1", "c"], ["s", "e"]]  # a second reply to "a" is no second prompt, "d" has no reply
    assert len(heldout_prompts(demos, 2)) == 2


def test_reply_figures_by_hand():
    samples = [
        {"reply": "x", "finished": True, "tokens": 2},
        {"reply": "x", "finished": True, "tokens": 2},
        {"reply": "y", "finished": False, "tokens": 5},
    ]
    found = reply_figures(samples)
    assert found == {
        "replies": 3,
        "end_rate": pytest.approx(2 / 3),
        "distinct": pytest.approx(2 / 3),
        "reply_tokens": 3.0,
    }
    assert reply_figures([]) == {}
