"""A tiny PPO set-up for tests: random Qwen2 policy and reference, a critic, and rewards that need no model."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from align.models.critic import Critic
from align.recipe.estimators import ESTIMATORS
from align.recipe.ppo_section import PPOSection
from align.trainers.ppo import PPOTrainer
from align.trainers.ppo.types import Samples
from data_formats.records import Message, Prompt
from reward.sources import FunctionReward
from tests.tiny_models import byte_tokenizer, qwen2_config

WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}  # changes of `policy`
TOKENIZER = byte_tokenizer()
END = 258


def policy(seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> nn.Module:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(qwen2_config(hidden_size=16, **changes)).to(dtype).eval()


def critic(seed: int = 1, dtype: torch.dtype = torch.float32, head_scale: float = 0.3, **changes) -> Critic:
    """With a head that is not zero, so that gradients reach the body."""
    model = Critic.from_causal_lm(policy(seed, torch.float32, **changes))
    torch.manual_seed(seed + 100)
    nn.init.normal_(model.head.weight, std=head_scale)
    return model.to(dtype)


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt((Message("user", "say " + "abc"[: 1 + index % 3] * (1 + index % 2)),), "say") for index in range(count)
    ]


def vowels(prompts, completions):
    """A reward made of the text alone."""
    return [sum(char in "aeiou" for char in text) + 0.1 * len(text) for text in completions]


def section(**changes) -> PPOSection:
    rollout = {
        "engine": "hf",
        "num_generations": 2,
        "top_p": 0.9,
        "max_completion_length": 7,
        "batch_size": 64,
    } | changes.pop("rollout", {})
    policy_optim = {"learning_rate": 1e-2} | changes.pop("policy", {})
    critic_optim = {"critic": {"learning_rate": 2e-2} | changes.pop("critic", {})}
    if not ESTIMATORS[changes.get("advantage", "gae")].critic:
        critic_optim = {}
    values = {
        "data": ({"path": "unused"},),
        "num_iterations": 2,
        "rollout_batch_size": 4,
        "num_mini_batches": 2,
        "micro_batch_size": 2,
        "critic_warmup_steps": 0,
        "rollout": rollout,
        "policy": policy_optim,
        **critic_optim,
    }
    if changes.get("ptx_coef"):
        values["ptx_data"] = ({"path": "unused"},)
    return PPOSection(**(values | changes))


def trainer(folder, *, dtype=torch.float32, kind=PPOTrainer, num_prompts=12, reward=vowels, config=None, **options):
    of_config = PPOSection.model_fields.keys() - {"callbacks", "judge"}  # which the trainer is given itself
    changes = {key: options.pop(key) for key in list(options) if key in of_config}
    config = config or section(**changes)
    given = options.pop("critic_model", None)
    return kind(
        options.pop("policy_model", None) or policy(dtype=dtype),
        (given or critic(dtype=dtype)) if config.estimator.critic else None,
        FunctionReward(reward) if callable(reward) else reward,
        TOKENIZER,
        config,
        prompts(num_prompts),
        output_dir=folder,
        **options,
    )


def samples(reply_lengths, prompt_lengths=(3, 5), seed: int = 0, finished=None, to_a_prompt: int = 1) -> Samples:
    """Random replies of given lengths, so many to a prompt; the last token is the end token where finished."""
    generator = torch.Generator().manual_seed(seed)
    count = len(reply_lengths)
    finished = [True] * count if finished is None else finished
    prompt_ids, reply_ids = [], []
    for row, length in enumerate(reply_lengths):
        width = prompt_lengths[row // to_a_prompt % len(prompt_lengths)]
        drawn = tuple(torch.randint(0, 256, (width,), generator=generator).tolist())
        prompt_ids.append(prompt_ids[-1] if row % to_a_prompt else drawn)
        reply = torch.randint(0, 256, (length,), generator=generator).tolist()
        reply_ids.append(tuple([*reply[:-1], END] if finished[row] else reply))
    return Samples(
        prompts=tuple(prompts(count)),
        prompt_ids=tuple(prompt_ids),
        reply_ids=tuple(reply_ids),
        replies=tuple(str(row) for row in range(count)),
        finished=tuple(finished),
    )


def exact(model: nn.Module) -> nn.Module:
    """Float64 throughout: transformers' RMSNorm computes in float32, torch's in the dtype it is given."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "Qwen2RMSNorm":
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon)
                norm.weight = nn.Parameter(child.weight.detach().clone())
                setattr(parent, name, norm)
    return model.double()


class ExactCritic(nn.Module):
    """A critic with a float64 head (the project's own computes its head in float32)."""

    def __init__(self, seed: int = 1, **changes):
        super().__init__()
        self.backbone = exact(policy(seed, **changes)).model
        torch.manual_seed(seed)
        self.head = nn.Linear(16, 1, bias=False).double()

    def forward(self, input_ids, attention_mask, position_ids=None, *, parts=None, with_states=False):
        given = {"position_ids": position_ids} | ({} if parts is None else {"parts": parts})
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **given)
        values = self.head(output.last_hidden_state).squeeze(-1)
        return (values, output.last_hidden_state) if with_states else values


class Recorder(PPOTrainer):
    """Learns from given samples (one set an iteration) and notes weights and gradients of every optimizer step."""

    given: list[Samples]

    def collect(self, prompts, params=None):
        whole = self.given[self.state.global_step]
        return whole if self.world_size == 1 else share(whole, self.rank, self.world_size)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = []
        before_each_step(self.learner, self._note)

    def _note(self, trained):
        before = {
            name: [parameter.detach().clone() for parameter in model.parameters]
            for name, model in (("policy", self.policy), ("value", self.critic))
        }
        self.steps.append((before, {name: model.gradients() for name, model in trained.items()}))


def before_each_step(learner, note):
    """Have `note(trained)` called when the gradients of an optimizer step are there, before they are clipped."""
    step = learner.step

    def noted(metrics, *, with_policy):
        trained = {} if learner.critic is None else {"value": learner.critic}
        note(trained | ({"policy": learner.policy} if with_policy else {}))
        step(metrics, with_policy=with_policy)

    learner.step = noted


def share(samples: Samples, rank: int, world_size: int) -> Samples:
    """Consecutive rows, so that ranks in order give the whole."""
    size = len(samples) // world_size
    rows = slice(rank * size, (rank + 1) * size)
    return Samples(*(getattr(samples, name)[rows] for name in Samples.__dataclass_fields__))


def length_score(prompts, completions):
    """Used with `samples`, whose texts number the rows: scores that differ and are no round numbers."""
    return [0.37 * (int(text) * 7 % 11) - 1.3 for text in completions]
