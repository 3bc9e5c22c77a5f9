"""Moments that several stages have: training passes of a model, passes without gradients, sampling."""

from __future__ import annotations

from align.plan import activations
from align.plan.models import Model
from align.plan.parts import MemoryPart, Moment, parts

Held = tuple[MemoryPart, ...]
READ_AT_ONCE = 4096  # tokens of prompts in one pass: that of `rollouts.decode`


def training_moments(
    model: Model, held: Held, rows: int, tokens: int, *, device: str, logit_rows: int = 0, accumulating: bool = False
) -> list[Moment]:
    """The peaks of one forward and backward pass: at the turn, where all activations are there, and at the end, where
    all gradients are. `held` is what is there anyway; `accumulating`: gradients of earlier micro-batches too."""
    body, role = model.body, model.role
    before = held + (model.gradients() if accumulating else ())
    kept = activations.saved(body, rows, tokens)
    turn = activations.logits(body, logit_rows, device, backward=True, learns=model.head) if logit_rows else 0
    flowing = activations.flowing(body, rows, tokens)
    copies = activations.weight_copies(body, head=logit_rows > 0, backward=True)
    at_turn = parts(role, weight_copies=copies, activations=kept + max(0, flowing - turn), logits=turn)
    found = [Moment(f"{role}: backward pass begins", before + at_turn)]
    if body.checkpointing:  # what autocast cast is kept until the forward pass is through
        forward = activations.weight_copies(body, head=logit_rows > 0, backward=False)
        made = activations.logits(body, logit_rows, device, backward=False) if logit_rows else 0
        at_end = parts(role, weight_copies=forward, activations=kept, logits=made)
        found.append(Moment(f"{role}: forward pass ends", before + at_end))
    embedding = 4 * body.count.embedding if body.lora is None else 0  # its gradient, before it is added or kept
    last = activations.saved_by_layer(body, tokens) * rows * tokens + flowing
    ending = held + model.gradients() + parts(role, activations=last)
    if accumulating or body.shape.tie_word_embeddings:
        ending += parts(role, gradients=embedding)
    return [*found, Moment(f"{role}: backward pass ends", ending)]


def plain_moment(
    model: Model, held: Held, rows: int, tokens: int, *, device: str, name: str, logit_rows: int = 0
) -> Moment:
    """A pass without gradients."""
    body, shape = model.body, model.body.shape
    states = rows * tokens * shape.hidden_size * body.precision.weights
    made = activations.logits(body, logit_rows, device, backward=False) if logit_rows else 0
    more = parts(
        model.role,
        weight_copies=activations.weight_copies(body, head=logit_rows > 0, backward=False),
        activations=states + activations.flowing(body, rows, tokens),
        logits=made,
    )
    return Moment(f"{model.role}: {name}", held + more)


def sampling_moments(
    model: Model, held: Held, rows: int, prompt: int, reply: int, *, truncated: bool, name: str = "sampling"
) -> list[Moment]:
    """`rows` replies sampled at once: reading the prompts, some thousand tokens in a pass, then the last token. Room
    for all keys and values is taken at the start (`rollouts.decode`)."""
    body, role = model.body, model.role
    copies = activations.weight_copies(body, head=True, backward=False)
    scores = activations.sampling(body.shape, rows, truncated)
    cache = activations.kv_cache(body, rows, prompt + reply)
    together = min(rows, max(1, READ_AT_ONCE // prompt))
    reading = parts(role, weight_copies=copies, activations=activations.flowing(body, together, prompt), kv_cache=cache)
    last = parts(role, weight_copies=copies, logits=scores, kv_cache=cache)
    return [
        Moment(f"{role}: {name}, prompts are read", held + reading),
        Moment(f"{role}: {name}, last token", held + last),
    ]
