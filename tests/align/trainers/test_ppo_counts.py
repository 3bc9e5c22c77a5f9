"""How many tokens go through each model in an iteration, and how many rows through its LM head, counted by hooks on the
real trainer and compared with the arithmetic that `align check` and `align plan` print. A count has no noise: a pass
too many, a prompt computed twice or a logit that nobody reads fails here."""

from collections import Counter

import torch

from align.plan.cost import PromptGroup, Work, decode_pass, reply_pass
from align.trainers.ppo import PPOTrainer
from align.trainers.ppo.forward import shares_prompts
from data_formats.records import Message, Prompt
from tests.align.trainers import ppo_case

REPLY, GENERATIONS, PROMPTS, EPOCHS, MINIBATCHES = 5, 2, 4, 2, 2


class Counting(PPOTrainer):
    """Notes what is asked of the models, by the part of the iteration in which it is."""

    def collect(self, prompts, params=None):
        self.part = "decode"
        return super().collect(prompts, params)

    def make_experience(self, samples, scores_N):
        self.part = "experience"
        return super().make_experience(samples, scores_N)

    def update(self, experience):
        self.part, self.tokens = "update", experience.tokens
        self.taken_up = experience.kept.rows_B  # rows whose pass is not made again
        self.epochs = [self.minibatches(experience.tokens, epoch) for epoch in range(EPOCHS)]
        return super().update(experience)


def counted(trainer, policy, reference, critic=None):
    """What is counted from now on: Counters of tokens and of head rows, by part and model."""
    tokens, heads = Counter(), Counter()

    def body(name):
        def note(module, args, kwargs):
            ids = kwargs.get("input_ids", args[0] if args else None)
            read = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
            tokens[trainer.part, name] += read.numel()

        return note

    def head(name):
        def note(module, args):
            heads[trainer.part, name] += args[0].shape[:-1].numel()

        return note

    for name, model in (("policy", policy), ("reference", reference)):
        model.model.register_forward_pre_hook(body(name), with_kwargs=True)
        model.lm_head.register_forward_pre_hook(head(name))
    if critic is not None:
        critic.backbone.register_forward_pre_hook(body("critic"), with_kwargs=True)
    return tokens, heads


def groups_of(rows, tokens):
    """The rows of a micro-batch by prompt."""
    found = {}
    for row in rows.tolist():
        prompt = int(tokens.prompt_lengths_N[row])
        found.setdefault((int(tokens.groups_N[row]), prompt), []).append(int(tokens.lengths_N[row]) - prompt)
    return [PromptGroup(prompt, tuple(replies)) for (_, prompt), replies in found.items()]


def test_one_optimizer_step_passes_the_policy_once(tmp_path):
    policy, reference = ppo_case.policy(0), ppo_case.policy(0)
    rollout = {"top_p": 1.0, "max_completion_length": REPLY, "min_completion_length": REPLY}
    trainer = ppo_case.trainer(
        tmp_path,
        policy_model=policy,
        reference=reference,
        rollout=rollout,
        advantage="grpo",
        kl_in="loss",
        num_mini_batches=1,
        logging_steps=100,
    )
    trainer.step()
    trainer.part = "all of it"
    _, heads = counted(trainer, policy, reference)
    trainer.state.global_step += 1  # an iteration that is not logged: no exact KL
    trainer.step()
    groups = [PromptGroup(1, (REPLY,) * GENERATIONS)] * PROMPTS
    drawn, asked = decode_pass(groups).head_rows, reply_pass(groups).head_rows
    assert heads == {("all of it", "policy"): drawn + asked, ("all of it", "reference"): asked}


def test_an_iteration_computes_what_is_said_and_nothing_more(tmp_path, monkeypatch):
    different = [Prompt((Message("user", letter * (3 * at)),)) for at, letter in enumerate("abcdefghijkl", 1)]
    monkeypatch.setattr(ppo_case, "prompts", lambda count: different[:count])
    policy, reference, critic = ppo_case.policy(0), ppo_case.policy(0), ppo_case.critic(1)
    trainer = ppo_case.trainer(
        tmp_path,
        kind=Counting,
        policy_model=policy,
        critic_model=critic,
        reference=reference,
        rollout={
            "num_generations": GENERATIONS,
            "top_p": 1.0,
            "max_completion_length": REPLY,
            "min_completion_length": REPLY,
        },
        rollout_batch_size=PROMPTS,
        num_ppo_epochs=EPOCHS,
        num_mini_batches=MINIBATCHES,
        micro_batch_size=4,
        logging_steps=100,
    )
    assert shares_prompts(policy, reference, critic)  # which tries them once: before the count
    trainer.step()
    tokens, heads = counted(trainer, policy, reference, critic)
    trainer.state.global_step += 1  # an iteration that is not logged: no exact KL
    trainer.step()

    def asked(rows):
        return reply_pass(groups_of(rows, trainer.tokens))

    epochs = [sum((asked(rows) for _, micros in epoch for rows in micros), Work()) for epoch in trainer.epochs]
    taken_up = asked(trainer.taken_up)
    first, updates = epochs[0], sum(epochs, Work())
    whole = groups_of(torch.arange(PROMPTS * GENERATIONS), trainer.tokens)
    drawn = decode_pass(whole)

    assert len({group.prompt for group in whole}) == PROMPTS and first == reply_pass(whole)
    assert first.head_rows == PROMPTS * GENERATIONS * REPLY
    assert tokens == {
        ("decode", "policy"): drawn.tokens,
        ("experience", "reference"): first.tokens,
        ("experience", "policy"): first.tokens,
        ("experience", "critic"): first.tokens,
        ("update", "policy"): updates.tokens - taken_up.tokens,
        ("update", "critic"): updates.tokens,
    }
    assert heads == {
        ("decode", "policy"): drawn.head_rows,
        ("experience", "reference"): first.head_rows,
        ("experience", "policy"): first.head_rows,
        ("update", "policy"): updates.head_rows - taken_up.head_rows,
    }
