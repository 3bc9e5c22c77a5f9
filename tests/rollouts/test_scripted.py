"""The scripted engine obeys the protocol."""

import pytest

from rollouts.errors import RolloutError
from rollouts.protocol import Completion, Engine, SamplingParams
from rollouts.scripted import ScriptedEngine


def test_replies_are_prompt_major_cut_and_counted():
    engine = ScriptedEngine(lambda prompt, number: [prompt[0], number + 50, 9, 1], logprob=-0.5)
    assert isinstance(engine, Engine)
    engine.update_weights([], version=3)
    completions = engine.generate([[4], [5, 6]], SamplingParams(n=2, max_new_tokens=3, stop_token_ids=(9, 51)))
    assert completions == [
        Completion((4, 50, 9), (-0.5,) * 3, "stop", 3),
        Completion((4, 51), (-0.5,) * 2, "stop", 3),
        Completion((5, 50, 9), (-0.5,) * 3, "stop", 3),
        Completion((5, 51), (-0.5,) * 2, "stop", 3),
    ]
    assert engine.generate([[4]], SamplingParams(max_new_tokens=2, stop_token_ids=(9,))) == [
        Completion((4, 50), (-0.5,) * 2, "length", 3)
    ]
    assert [prompts for prompts, _ in engine.calls] == [[[4], [5, 6]], [[4]]]


def test_no_token_and_closed_are_errors():
    engine = ScriptedEngine(lambda prompt, number: [])
    with pytest.raises(RolloutError, match="no token"):
        engine.generate([[1]], SamplingParams())
    engine.close()
    with pytest.raises(RolloutError, match="closed"):
        engine.generate([[1]], SamplingParams())
