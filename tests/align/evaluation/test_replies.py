"""Replies are judged on the tokens of whoever judges."""

from align.evaluation.replies import judged_replies
from data_formats.records import Message, Prompt
from reward.combined import CombinedReward, Part
from reward.sources import FunctionReward
from rollouts.protocol import SamplingParams
from rollouts.scripted import ScriptedEngine
from tests.align.trainers import ppo_case
from tests.tiny_models import byte_tokenizer


class Watching:
    """Notes whether it was given token ids."""

    def __init__(self, name, tokenizer=None):
        self.name, self.tokenizer, self.seen = name, tokenizer, []

    def score(self, samples):
        self.seen += [sample.completion_ids is not None and sample.prompt_ids is not None for sample in samples]
        return [1.0] * len(samples)


def test_a_reward_with_another_tokenizer_gets_text_alone():
    other = byte_tokenizer()
    other.add_tokens(["new"])
    rewards = [Watching("none"), Watching("own", ppo_case.TOKENIZER), Watching("other", other)]
    engine = ScriptedEngine(lambda prompt, number: ppo_case.TOKENIZER("yes")["input_ids"])
    prompts = [Prompt((Message("user", "a"),), ""), Prompt((Message("user", "b"),), "")]
    judged = judged_replies(engine, ppo_case.TOKENIZER, prompts, SamplingParams(max_new_tokens=8), rewards)
    assert [reward.seen for reward in rewards] == [[True, True], [True, True], [False, False]]
    assert [row[0].tokens > 0 for row in judged] == [True, True]


def test_the_parts_of_a_composed_reward_are_judged_apart():
    parts = [
        Part(FunctionReward(lambda prompts, completions: [float(len(text)) for text in completions], "length"), 0.5),
        Part(FunctionReward(lambda prompts, completions, reference: [float(r == "3") for r in reference], "right")),
    ]
    engine = ScriptedEngine(lambda prompt, number: ppo_case.TOKENIZER("yes" * (1 + number))["input_ids"])
    prompts = [Prompt((Message("user", word),), "", reference) for word, reference in (("a", "3"), ("b", "4"))]
    params = SamplingParams(n=2, max_new_tokens=8)
    judged = judged_replies(engine, ppo_case.TOKENIZER, prompts, params, [CombinedReward(parts, "whole")])
    for row, right in zip(judged, (1.0, 0.0), strict=True):
        for one in row:
            length = float(len(one.text))
            assert one.scores == {"whole": 0.5 * length + right, "whole/length": length, "whole/right": right}
