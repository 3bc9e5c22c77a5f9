"""Bytes that passes hold beside weights, tensor by tensor, as transformers' layers, peft and torch keep them.

The layer (Qwen2, Qwen3, Llama): norm -> q, k, v -> rotary -> attention -> o -> add -> norm -> gate, up -> down -> add.
What autograd saves of it was read off `torch.autograd.graph.saved_tensors_hooks`, and a test compares again; those of
other families, with their own norms and MLPs, are told to a percent, experts more roughly. B rows of T tokens with
padding: attention then has a mask, which sdpa turns into floats for every layer, and keys and values repeated to the
number of query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.plan.count import Count, adapted, adapts_experts, count
from align.plan.precision import Precision
from align.plan.shapes import Shape
from align.recipe.batch import BLOCK_LOGITS
from align.recipe.model_section import LoraSection

INNER_BLOCK = {"cpu": 1 << 20, "gpu": 1 << 26}  # logits of align.functional.logprobs' own blocks


@dataclass(frozen=True, slots=True)
class Body:
    """A model as its passes see it.

    Attributes:
        lora: what is trained beside the frozen weights; None: all weights are trained.
        trained: whether anything is; else passes save nothing.
    """

    shape: Shape
    precision: Precision
    attention: str = "sdpa"
    lora: LoraSection | None = None
    trained: bool = True
    checkpointing: bool = False

    @property
    def count(self) -> Count:
        """Its parameters."""
        return count(self.shape)


def saved_by_layer(body: Body, tokens: int) -> float:
    """Bytes a token that one layer saves for its backward pass; `tokens` are those of a row."""
    shape, precision, family = body.shape, body.precision, body.shape.family
    h, f, q, k = shape.hidden_size, shape.intermediate_size, shape.query_size, shape.key_size
    wide, out, heads = precision.weights, precision.products, shape.num_attention_heads
    norms = wide * h if family.layer_norm else len(family.norms) * 4 * h  # their inputs, in the width they compute in
    if family.qk_norm != "no":
        norms += 4 * (q + k)
    if body.lora is None:
        if not family.layer_norm:  # before their own weights
            norms += len(family.norms) * (4 if family.wide_norm else wide) * h
            norms += (4 if family.wide_norm else out) * (q + k) if family.qk_norm != "no" else 0
        copies = precision.copies_weights  # autocast casts the input of every linear layer anew
        readers = sum(len(names) for names in family.linears[::2])
        inputs = (2 * h * readers if copies else 2 * wide * h) + out * f
    else:
        inputs = _read_by_adapters(body.lora, shape, precision)
    mlp = (3 if family.gated else 1) * out * f  # gate, its silu, up
    experts = 0
    if shape.experts:  # autocast leaves them alone; each has an input and a result of its own
        experts = wide * shape.experts.active * (4 * shape.experts.size + 2 * h)
    return norms + inputs + mlp + experts + _attention(body, tokens) + 4 * heads


def _attention(body: Body, tokens: int) -> float:
    width, shape = body.precision.attention, body.shape
    q, k, heads = shape.query_size, shape.key_size, shape.num_attention_heads
    if len(shape.family.linears[0]) == 1:  # what is cut out of one product keeps it, and has other strides
        q_copied = body.lora is not None and _copies_inputs(body.lora, body.precision)
        cut = width * ((0 if q_copied else q) + (2 * q if q == k else 0))
    else:
        cut = 0
    if body.attention == "flash_attention_2":
        return width * (2 * q + 2 * k) + cut
    if (
        body.attention == "eager"
    ):  # their softmax over every pair of tokens, in float32 and in what multiplies the values
        return width * 4 * q + heads * tokens * (4 if width == 4 else 6) + cut
    return width * (4 * q + tokens) + cut


def _copies_inputs(lora: LoraSection, precision: Precision) -> bool:
    """Whether every adapter saves an input of its own."""
    return precision.adapter_copies or lora.dropout > 0


def _read_by_adapters(lora: LoraSection, shape: Shape, precision: Precision) -> float:
    """What adapters save: their inputs, of one layer shared where nobody copies, and the product with A."""
    names, width = adapted(shape, lora), precision.adapter_input
    own = _copies_inputs(lora, precision)
    total = 0.0
    for readers in shape.family.linears:
        reading = [name for name in readers if name in names]
        saved_once = 0 if readers == shape.family.linears[1] else min(1, len(reading))  # attention saves what it gives
        total += shape.linears[readers[0]][0] * width * (len(reading) if own else saved_once)
    if lora.dropout > 0:  # and the mask
        total += sum(shape.linears[name][0] for name in names)
    return total + len(names) * lora.rank * width


def weight_copies(body: Body, *, head: bool, backward: bool) -> float:
    """bfloat16 copies of float32 weights that autocast keeps: of trained ones for a whole forward pass, and whatever is
    saved for the backward pass until that has used it."""
    experts = body.count.experts if body.lora is not None and adapts_experts(body.shape, body.lora) else 0
    if experts and backward and not body.checkpointing:  # peft adds the change to all of a layer's experts at once
        return body.precision.weights * experts
    if body.precision.quantized is not None:  # the widest matrix at a time is unpacked, into bfloat16
        return 2 * max(inputs * outputs for inputs, outputs in body.shape.linears.values())
    if not body.precision.copies_weights:
        return 0
    linear = body.count.linear + body.count.experts
    whole = linear + (body.shape.vocab_size * body.shape.hidden_size if head else 0)
    layer = linear / body.shape.num_hidden_layers
    trained = body.trained and body.lora is None
    if backward and body.trained:
        return 2 * (layer if body.checkpointing else whole)
    return 2 * whole if trained else 2 * layer


def saved(body: Body, rows: int, tokens: int) -> float:
    """Bytes that a forward pass of B rows leaves for its backward pass, weight copies and logits apart."""
    shape, precision, positions = body.shape, body.precision, rows * tokens
    layer = saved_by_layer(body, tokens) * positions
    stream = precision.weights * shape.hidden_size * positions
    end = (4 + precision.weights) * shape.hidden_size * positions  # of the final norm, and what the head reads
    if body.checkpointing:
        return shape.num_hidden_layers * stream + layer + end
    return shape.num_hidden_layers * layer + end


def flowing(body: Body, rows: int, tokens: int) -> float:
    """Bytes in hand while a layer computes, forward without a backward pass or backward: the MLP's three products (or
    their gradients), the residual stream and the norm in float32."""
    shape, precision = body.shape, body.precision
    mlp = (3 if shape.family.gated else 2) * precision.products * shape.active_size
    return rows * tokens * (mlp + (2 * precision.weights + 4) * shape.hidden_size)


def logits(body: Body, rows: int, device: str, *, backward: bool, learns: bool = True) -> float:
    """Bytes of the logits of `rows` tokens, of which a block is made at once, in the product's width; their gradient
    takes their place. Beside them the float32 pieces of the log-softmax. Where the model caps its logits, all of them
    are held, before, in and after the cap. `learns`: the head is trained with the body.
    """
    precision, vocabulary = body.precision, body.shape.vocab_size
    made = rows * vocabulary if body.shape.caps_logits else min(rows * vocabulary, max(BLOCK_LOGITS, vocabulary))
    inner = min(made, INNER_BLOCK[device])
    width = 2 if precision.autocast else precision.weights
    total = made * width * (3 if body.shape.caps_logits else 1) + inner * (8 if backward else 4)
    if backward and learns and body.lora is None:  # the head's gradient waits for the last block, and a tied one's
        total += 4 * vocabulary * body.shape.hidden_size * (2 if made < rows * vocabulary else 1)
    return total


def kv_cache(body: Body, rows: int, tokens: int) -> float:
    """Keys and values of all layers, and one layer's old ones while they grow by a token. Under autocast the rotation,
    with float32 angles, makes keys float32."""
    shape, precision = body.shape, body.precision
    keys = 4 if precision.autocast and precision.weights == 4 else precision.attention
    layer = shape.key_size * (keys + precision.products) * rows * tokens
    return layer * (shape.num_hidden_layers + 1)


def sampling(shape: Shape, rows: int, truncated: bool) -> float:
    """Scores over the vocabulary of the rows that are sampled at once: in float32 twice, and where top-p or top-k
    truncates, sorted with their places (float32, int64), as shares (float32) and added up (float64)."""
    return rows * shape.vocab_size * (8 + (24 if truncated else 8))
