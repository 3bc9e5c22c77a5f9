import pytest
import torch
from transformers import Qwen2ForCausalLM

from align.models.critic import Critic
from align.trainers.ppo.forward import (
    reply_distribution,
    reply_full_kl,
    reply_logprobs,
    shares_prompts,
    silence_dropout,
    state_values,
)
from align.trainers.ppo.types import SupportTensor, TokenBatch
from reward import flat
from tests.align.models import roles_case
from tests.align.trainers import ppo_case, roles_run

PROMPTS, REPLIES = [(1, 2, 3), (4, 5, 6, 7, 8), (9,)], [(10, 11, 258), (12,), (13, 14, 15, 16)]


def test_logprobs_and_entropy_are_those_of_each_row_alone():
    model = ppo_case.exact(ppo_case.policy())
    batch = TokenBatch.from_ids(PROMPTS, REPLIES, pad_id=77)
    with torch.no_grad():
        found = reply_distribution(model, batch, 0.5, entropy=True)
        logps, entropy = found.full, found.entropy
        assert found.ratio is logps and reply_distribution(model, batch, 0.5).entropy is None
        assert torch.equal(reply_logprobs(model, batch, 0.5), logps)
        for row, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
            logits = model(input_ids=torch.tensor([[*prompt, *reply]])).logits[0] / 0.5
            for t, token in enumerate(reply):
                state = len(prompt) + t - 1
                full = logits[state] - logits[state].logsumexp(0)
                assert float(logps[row, state]) == pytest.approx(float(full[token]), rel=1e-12)
                assert float(entropy[row, state]) == pytest.approx(float(-(full.exp() * full).sum()), rel=1e-12)
    assert logps.shape == batch.mask_NS.shape


def test_values_are_those_before_each_reply_token():
    critic = ppo_case.ExactCritic()
    batch = TokenBatch.from_ids(PROMPTS, REPLIES, pad_id=77)
    with torch.no_grad():
        values = state_values(critic, batch)
        for row, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
            ids = torch.tensor([[*prompt, *reply]])
            alone = critic(ids, torch.ones_like(ids))[0]
            for state in range(len(prompt) - 1, len(prompt) + len(reply) - 1):
                assert float(values[row, state]) == pytest.approx(float(alone[state]), rel=1e-12)


def test_silenced_models_say_the_same_in_both_modes():
    model = ppo_case.policy(attention_dropout=0.4)
    model.model.layers[0].mlp = torch.nn.Sequential(model.model.layers[0].mlp, torch.nn.Dropout(0.5))
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert not torch.equal(model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    silence_dropout(model)
    assert torch.equal(model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def several_to_a_prompt() -> TokenBatch:
    """3, 1 and 2 replies to three prompts, apart from one another, and something at the padded places."""
    first, second, third = (1, 2, 3), (4, 5, 6, 7, 8, 9), (10,)
    replies = [(20, 21, 258), (22,), (23, 24, 25, 26, 27), (28, 258), (29, 30, 31, 32), (33, 34, 258)]
    return TokenBatch.from_ids([first, third, first, second, first, third], replies, pad_id=77)


CPU = torch.device("cpu")


def learnt(policy, critic, batch):
    """What policy and critic say of a batch, and the gradients of a loss of it."""
    rows = zip(batch.input_ids_NT.tolist(), batch.row_sizes, strict=True)
    ids = [ids[size.prompt_length : size.length] for ids, size in rows]
    support = SupportTensor.from_supports([[(token, 40, 41) for token in reply] for reply in ids], batch)
    said = reply_distribution(policy, batch, 0.7, support=support, entropy=True)
    values = state_values(critic, batch)
    weight_NS = torch.linspace(-1, 1, values.numel(), dtype=torch.float64).reshape(values.shape) * batch.mask_NS
    loss = (weight_NS * (said.full + 0.4 * said.ratio + 0.1 * said.entropy)).sum() + (weight_NS * values).sum()
    loss.backward()
    parameters = [p for p in (*policy.parameters(), *critic.parameters()) if p.requires_grad]
    gradients = [p.grad.clone() for p in parameters]
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    for parameter in parameters:
        parameter.grad = None
    said = [tensor[batch.mask_NS] for tensor in (said.full, said.ratio, said.entropy, values)]
    with torch.no_grad():
        assert torch.equal(reply_logprobs(policy, batch, 0.7)[batch.mask_NS], said[0])
    return [tensor.detach() for tensor in said] + gradients


def plain():
    return ppo_case.exact(ppo_case.policy()), ppo_case.ExactCritic()


def checkpointed():
    models = plain()
    for model in (models[0], models[1].backbone):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    return models


def adapted():
    models = roles_case.separate(torch.float64)
    return models["policy"], Critic(models["critic"].backbone, roles_run.ExactHead(7))


def roles():
    models = roles_case.shared(roles_case.separate(torch.float64), torch.float64)
    models["policy"].gradient_checkpointing_enable()
    critic = Critic(models["critic"].backbone, roles_run.ExactHead(7))
    return models["policy"].train(), critic.train()


@pytest.mark.parametrize("make", [plain, checkpointed, adapted, roles])
def test_a_shared_prompt_changes_neither_what_is_said_nor_what_is_learnt(make, monkeypatch):
    policy, critic = make()
    batch = several_to_a_prompt()
    assert shares_prompts(policy, critic)
    shared = learnt(policy, critic, batch)
    assert batch.flat.inputs["input_ids"].shape == (1, 3 + 6 + 1 + 18)
    for model in (policy, critic):
        monkeypatch.setitem(flat._takes_flat, model, False)
    apart = learnt(policy, critic, batch)
    torch.testing.assert_close(shared, apart, rtol=1e-10, atol=1e-12)


def test_the_head_is_asked_about_states_with_an_action_alone():
    model, batch, rows = ppo_case.policy(), several_to_a_prompt(), []
    model.lm_head.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[:-1].numel()))
    assert shares_prompts(model)
    rows.clear()
    reply_logprobs(model, batch, 1.0)
    reply_full_kl(model, model, batch, 1.0)
    flat._takes_flat[model] = False
    reply_logprobs(model, several_to_a_prompt(), 1.0)
    assert rows == [18] * 4


def test_a_batch_is_laid_once_for_all_that_ask_and_knows_its_sizes_on_another_device():
    batch = several_to_a_prompt()
    assert batch.flat is batch.flat
    some = batch.to(CPU).rows(torch.tensor([4, 0, 1]))
    assert [tuple(size) for size in some.row_sizes] == [(0, 3, 7), (0, 3, 6), (1, 1, 2)]
    assert some.flat.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 0, 1]]
    assert some.flat.inputs["input_ids"].tolist() == [[1, 2, 3, 29, 30, 31, 32, 20, 21, 258, 10, 22]]
    assert some.flat.ids_K.tolist() == [29, 30, 31, 32, 20, 21, 258, 22]
    assert some.flat.states_K.tolist() == [2, 3, 4, 5, 2, 7, 8, 10]


class GivesAllLogits(Qwen2ForCausalLM):
    def forward(self, *args, logits_to_keep=0, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_model_that_gives_all_logits_whatever_is_asked_gets_padded_rows():
    policy, batch = ppo_case.policy(), several_to_a_prompt()
    other = GivesAllLogits(policy.config).eval()
    other.load_state_dict(policy.state_dict())
    assert shares_prompts(policy) and not shares_prompts(other)
    torch.testing.assert_close(reply_logprobs(other, batch, 0.7), reply_logprobs(policy, batch, 0.7))


class OwnCritic(torch.nn.Module):
    """Knows nothing of flat rows, and its config is its own affair."""

    def __init__(self, config):
        super().__init__()
        self.inner, self.config = ppo_case.critic(1), config

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids, attention_mask)


@pytest.mark.parametrize("config", [None, {"size": 16}, ppo_case.policy().config])
def test_a_critic_of_somebody_s_own_gets_padded_rows(config):
    critic, batch = OwnCritic(config), several_to_a_prompt()
    assert not shares_prompts(critic) and shares_prompts(critic.inner)
    torch.testing.assert_close(state_values(critic, batch), state_values(critic.inner, batch))


def test_attention_that_is_changed_after_the_trial_gets_padded_rows():
    policy, batch = ppo_case.policy(), several_to_a_prompt()
    before = reply_logprobs(policy, batch, 0.7)
    policy.set_attn_implementation("eager")
    assert not shares_prompts(policy)
    torch.testing.assert_close(reply_logprobs(policy, batch, 0.7), before)


@pytest.mark.parametrize("changes", [{"attn_implementation": "eager"}, ppo_case.WINDOW], ids=["eager", "window"])
def test_models_that_take_no_flat_rows_say_what_each_row_alone_does(changes):
    policy = ppo_case.exact(ppo_case.policy(**changes))
    critic = ppo_case.ExactCritic(**changes)
    batch = several_to_a_prompt()
    assert not shares_prompts(policy) and not shares_prompts(critic)
    said, values = reply_logprobs(policy, batch, 0.7), state_values(critic, batch)
    for row in range(len(batch.lengths_N)):
        alone = batch.rows(torch.tensor([row]))
        mask = alone.mask_NS[0]
        expected = (reply_logprobs(policy, alone, 0.7)[0], state_values(critic, alone)[0])
        for found, want in zip((said, values), expected, strict=True):
            near = 1e-6 if "attn_implementation" in changes else 1e-12  # eager's softmax is of float32
            torch.testing.assert_close(found[row, : len(mask)][mask], want[mask], rtol=near, atol=near)
