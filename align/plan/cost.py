"""What training costs, from lengths and shapes alone: the tokens that each pass computes, and its FLOPs.

A multiplication with its addition is two FLOPs. Counted are the linear layers, attention (each query with the keys that
it may see, and with their values) and, where a token is drawn or learnt, the LM head; norms, rotations and softmax are
not. A backward pass is two forward ones: one for the gradient that flows on, one for the weights, which frozen ones do
not need. Gradient checkpointing computes the layers once more.

Lengths are those of full prompts and replies, which a recipe knows; a test counts the tokens and head rows of a real
iteration by hooks and compares them with these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from align.plan.count import count
from align.plan.models import Model
from align.plan.parts import PTX, Cost, Phase
from align.plan.ppo_models import StageModels, key_of
from align.recipe import Recipe, batch_plan
from align.recipe.batch import BatchPlan
from align.recipe.ppo_section import PPOSection

COUNTED = ("tokens", "head_rows", "flops")


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt and the replies to it that one micro-batch holds: tokens of each."""

    prompt: int
    replies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What a forward pass computes.

    Attributes:
        tokens: that go through the layers.
        pairs: of a query and a key that it may see, of one layer.
        head_rows: states that the LM head, where there is one, reads.
    """

    tokens: int = 0
    pairs: int = 0
    head_rows: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.head_rows + other.head_rows)

    def times(self, number: int) -> Work:
        """So many passes."""
        return Work(number * self.tokens, number * self.pairs, number * self.head_rows)


NOTHING = Work()


def _row(before: int, length: int) -> int:
    """Pairs of `length` tokens that see each other in order, and `before` others."""
    return length * before + length * (length + 1) // 2


def reply_pass(groups: Iterable[PromptGroup], *, shared: bool = True) -> Work:
    """A pass over prompts and replies that asks about every reply token; `shared`: a prompt is computed once for all
    replies of its group, and nothing is padded."""
    found = Work()
    for group in groups:
        prompt = Work(group.prompt, _row(0, group.prompt))
        found += prompt if shared else prompt.times(len(group.replies))
        for reply in group.replies:
            found += Work(reply, _row(group.prompt, reply), reply)
    return found


def decode_pass(groups: Iterable[PromptGroup], *, shared: bool = True) -> Work:
    """Sampling these replies: a prompt is read, once for all of its replies if `shared`, and then each reply token but
    the last; the head reads one state a prompt read and a token."""
    found = Work()
    for group in groups:
        prompt = Work(group.prompt, _row(0, group.prompt), 1)
        found += prompt if shared else prompt.times(len(group.replies))
        for reply in group.replies:
            found += Work(reply - 1, _row(group.prompt, reply - 1), reply - 1)
    return found


def row_pass(rows: int, length: int) -> Work:
    """Rows of text of `length` tokens, all of them learnt."""
    return Work(length, _row(0, length), length).times(rows)


def flops(work: Work, model: Model, *, trained: bool = False) -> float:
    """Of a forward pass or, `trained`, of forward and backward."""
    shape, body = model.body.shape, model.body
    head = 2 * shape.vocab_size * shape.hidden_size * work.head_rows if model.head else 0
    linear = 2 * count(shape).active * work.tokens
    attention = 4 * shape.query_size * shape.num_hidden_layers * work.pairs
    adapter = 2 * model.adapter_size * work.tokens
    layers = linear + attention + adapter
    if not trained:
        return layers + head
    frozen = body.lora is not None  # then no gradient of the wide weights
    backward = (1 if frozen else 2) * (linear + head) + 2 * (attention + adapter)
    return layers + head + backward + (layers if body.checkpointing else 0)


def ppo_cost(recipe: Recipe, models: StageModels, *, ranks: int = 1) -> Cost:
    """An iteration after the critic's warm-up, at full length; micro-batches have room for a prompt and all of its
    replies."""
    section, plan = recipe.ppo, batch_plan(recipe, "ppo", ranks)
    rollout, length = section.rollout, section.rollout.max_completion_length
    group, prompts = PromptGroup(rollout.max_prompt_length, (length,) * rollout.num_generations), plan.prompts
    drawn, asked = decode_pass([group]).times(prompts), reply_pass([group]).times(prompts)
    policy, reference, critic = models.policy, models.reference, models.critic
    judges = [one for one in models.rewards if key_of(one.role) == "reward"]
    updated, taken_up = asked.times(section.num_ppo_epochs), first_micro_batch(section, plan, group)
    if ranks > 1 or "reference" in section.offload or section.asks_policy_late:  # `ModelPasses` keeps no pass
        taken_up = NOTHING
    phases = [
        _phase("decode", drawn, policy),
        *(_phase(one.role, asked, one) for one in judges),
        _phase("reference", asked, reference),
    ]
    if not section.asks_policy_late:
        phases.append(_phase("old log-probabilities", asked, policy))
    if critic is not None:
        phases += [_phase("old values", asked, critic), _phase("critic's update", updated, critic, trained=True)]
    phases.append(_phase("policy's update", updated, policy, trained=True, made=taken_up))
    if section.uses_ptx:
        rows = row_pass(plan.ptx_batch_size * plan.steps_per_iteration, section.ptx_max_length)
        phases.append(_phase(PTX, rows, policy, trained=True))
    phases += _evaluation(section, models)
    words = f"prompts of {rollout.max_prompt_length:,} tokens, replies of {length:,}"
    return Cost("iteration", tuple(phases), words, asked.tokens, prompts * reply_pass([group], shared=False).tokens)


def first_micro_batch(section: PPOSection, plan: BatchPlan, group: PromptGroup) -> Work:
    """The policy's pass over what is learnt from first: made for old log-probabilities, and taken up by the update."""
    responses = min(plan.rank_batch_size, section.micro_batch_size or plan.rank_batch_size)
    groups = responses // len(group.replies)
    if section.tokens_at_once is not None:
        groups = min(groups, section.tokens_at_once // reply_pass([group]).tokens)
    return reply_pass([group]).times(max(1, groups))


def _phase(name: str, work: Work, model: Model, *, trained: bool = False, made: Work = NOTHING) -> Phase:
    """`made`: of the forward pass, what an earlier phase made."""
    head_rows = work.head_rows - made.head_rows if model.head else 0
    total = flops(work, model, trained=trained) - flops(made, model)
    return Phase(name, work.tokens - made.tokens, head_rows, total)


def _evaluation(section: PPOSection, models: StageModels) -> Iterator[Phase]:
    """The share of an iteration in the evaluations between first and last; where the recipe does not say of how many
    prompts, of as many as an iteration has."""
    evaluation, rollout = section.evaluation, section.rollout
    if evaluation.every_steps is None or not section.eval_data:
        return
    prompts = evaluation.limit or section.rollout_batch_size
    group = PromptGroup(rollout.max_prompt_length, (rollout.max_completion_length,))
    drawn, asked = decode_pass([group]).times(prompts), reply_pass([group]).times(prompts)
    made = [_phase("", drawn, models.policy)]
    made += [_phase("", asked, one) for one in (models.policy, models.reference, *models.rewards)]
    each = 2 / evaluation.every_steps  # a sampled reply and a greedy one to each prompt
    tokens, head_rows, total = (each * sum(getattr(one, name) for one in made) for name in COUNTED)
    yield Phase("evaluation", round(tokens), round(head_rows), total)


def supervised_cost(recipe: Recipe, stage: str, model: Model, *, ranks: int = 1) -> Cost:
    """An optimizer step of full rows; of a pair both sides are counted whole."""
    section = getattr(recipe, stage)
    rows = batch_plan(recipe, stage, ranks).batch_size * section.rows_a_unit
    phase = _phase("training", row_pass(rows, section.max_length), model, trained=True)
    return Cost("optimizer step", (phase,), f"rows of {section.max_length:,} tokens")
