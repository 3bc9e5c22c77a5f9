"""`rollouts.exact`: whatever drafts, replies are those that the trainer's own pass gives, and so are their figures."""

import copy

import pytest
import torch

from rollouts.errors import RolloutError
from rollouts.hf import HFEngine
from rollouts.protocol import SamplingParams
from rollouts.sampling import Responses

PROMPTS = [[5, 6, 7, 8, 9], [3], [11, 12, 13], [20, 21, 22, 23, 24, 25, 26, 27], [2, 4]]
PARAMS = SamplingParams(n=2, temperature=0.9, top_p=0.9, max_new_tokens=12, stop_token_ids=(7, 8), seed=5)
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


class FullRows:
    """A trainer's pass: the model over a whole row, its logits shown in two blocks."""

    def __init__(self, model):
        self.model, self.passes = model, 0

    def logits(self, prompt, reply):
        with torch.no_grad():
            return self.model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]

    def __call__(self, prompt, reply, temperature, watch):
        self.passes += 1
        logits_nV, half = self.logits(prompt, reply), len(reply) // 2
        for at in (slice(0, half), slice(half, len(reply))):
            if at.stop > at.start:
                watch(logits_nV[at], at)
        return (logits_nV / temperature).log_softmax(-1).gather(-1, torch.tensor(reply)[:, None])[:, 0].tolist()


def perturbed(model, by):
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


@pytest.mark.parametrize("changes", [{}, WINDOW], ids=["decode", "generate"])
@pytest.mark.parametrize("by", [0.0, 0.05], ids=["own", "other"])
def test_replies_are_drawn_from_the_trainers_logits_whatever_drafts(build_model, changes, by):
    model = build_model(**changes)
    trainer_pass = FullRows(model)
    engine = HFEngine(perturbed(model, by), 0, batch_size=4, trainer_pass=trainer_pass)
    completions = engine.generate(PROMPTS, PARAMS)
    made = trainer_pass.passes
    for row, completion in enumerate(completions):
        prompt, reply = PROMPTS[row // 2], completion.token_ids
        again = Responses(len(completions), PARAMS, torch.device("cpu"))
        steps = torch.arange(len(reply))
        drawn = again.choose(trainer_pass.logits(prompt, reply), torch.full_like(steps, row), steps)
        assert tuple(drawn.tolist()) == reply
        assert list(completion.full_logprobs) == trainer_pass(prompt, reply, 0.9, lambda *_: None)
        assert len(completion.logprobs) == len(completion.kept_mass) == len(reply)
        ended = reply[-1] in PARAMS.stop_token_ids
        assert completion.finish_reason == ("stop" if ended else "length") and (ended or len(reply) == 12)
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}
    drafts = HFEngine(engine.model, 0).generate(PROMPTS, PARAMS)
    wrong = sum(one.token_ids != other.token_ids for one, other in zip(drafts, completions, strict=True))
    passes = made - len(completions)
    assert (wrong > 3 and passes >= wrong) if by else (wrong == 0 and passes == 0)


def test_min_new_tokens_and_greedy(model):
    plain = SamplingParams(n=2, temperature=1.0, max_new_tokens=6, min_new_tokens=4, stop_token_ids=(7, 8, 9), seed=3)
    for params in (plain, SamplingParams(temperature=0, max_new_tokens=6)):
        expected = HFEngine(model, 0).generate(PROMPTS, params)
        found = HFEngine(perturbed(model, 0.05), 0, trainer_pass=FullRows(model)).generate(PROMPTS, params)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]


def test_logits_that_change_with_what_follows_are_refused(model):
    class Restless(FullRows):
        def logits(self, prompt, reply):
            return super().logits(prompt, reply).roll(self.passes, -1)

    with pytest.raises(RolloutError, match="exact: the trainer's log-probability of a token changes with the tokens"):
        HFEngine(model, 0, trainer_pass=Restless(model)).generate(PROMPTS[:1], PARAMS)
