"""Exact numbers of parameters, by part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from align.plan.shapes import PlanError, Shape
from align.recipe.model_section import LoraSection


@dataclass(frozen=True, slots=True)
class Count:
    """Parameters of a causal LM.

    Attributes:
        embedding: the token embedding.
        linear: the weights of all linear layers between embedding and head.
        experts: the weights of all experts, and of what chooses among them.
        active: of the linear layers and experts, the weights that compute one token.
        head: of the LM head, 0 where it is the embedding.
        rest: norms and biases.
    """

    embedding: int
    linear: int
    experts: int
    active: int
    head: int
    rest: int

    @property
    def body(self) -> int:
        """All but the LM head: what a reward model and a critic have beside their own head."""
        return self.embedding + self.linear + self.experts + self.rest

    @property
    def whole(self) -> int:
        """The causal LM."""
        return self.body + self.head


def count(shape: Shape) -> Count:
    """Parameters of a causal LM of this shape."""
    h, layers, linears, experts = shape.hidden_size, shape.num_hidden_layers, shape.linears, shape.experts
    biases = sum(linears[name][1] for name in shape.biased)
    embedding = shape.vocab_size * h
    linear = layers * sum(inputs * outputs for inputs, outputs in linears.values())
    one, router = (3 * h * experts.size, h * experts.number) if experts else (0, 0)
    return Count(
        embedding=embedding,
        linear=linear,
        experts=layers * (experts.number * one + router) if experts else 0,
        active=linear + (layers * (experts.active * one + router) if experts else 0),
        head=0 if shape.tie_word_embeddings else embedding,
        rest=layers * (biases + _weights(shape, sum(shape.norms.values()))) + _weights(shape, h),
    )


def _weights(shape: Shape, width: int) -> int:
    """Of a norm."""
    return width * (2 if shape.family.layer_norm else 1)


def _last_parts(paths: Iterable[str]) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


def adapted(shape: Shape, lora: LoraSection) -> tuple[str, ...]:
    """Which linear layers of a layer have an adapter; a path counts as its last part.

    Raises:
        PlanError: a target that the model does not have.
    """
    if lora.targets == "all-linear":
        return tuple(shape.linears)
    named, ends = _last_parts(lora.targets), shape.family.ends[:2]
    if unknown := sorted(named - shape.linears.keys() - set(ends)):
        known = ", ".join((*shape.linears, *ends))
        raise PlanError(f"model.lora.targets: the model has no '{unknown[0]}'; it has {known}")
    return tuple(name for name in shape.linears if name in named)


def adapts_experts(shape: Shape, lora: LoraSection) -> bool:
    """Whether adapters are on the experts and what chooses among them."""
    return shape.family.adapts_experts and lora.targets == "all-linear"


def count_adapter(shape: Shape, lora: LoraSection, *, head: bool = True) -> int:
    """Trained parameters of one adapter: A and B (with DoRA a norm a row), and modules that are trained whole.

    Args:
        head: whether the model has an LM head; else what is said of it is left out.
    """
    pairs: Iterable[tuple[int, int]] = (shape.linears[name] for name in adapted(shape, lora))
    per_layer = sum(lora.rank * (inputs + outputs) + (outputs if lora.dora else 0) for inputs, outputs in pairs)
    if adapts_experts(shape, lora):  # gate and up, which are one weight, have twice the rank
        h, one = shape.hidden_size, shape.experts
        per_layer += lora.rank * (one.number * (2 * (h + 2 * one.size) + h + one.size) + h + one.number)
    whole = _saved_whole(shape, lora, head)
    if lora.targets != "all-linear":
        ends = _last_parts(lora.targets) & set(shape.family.ends[: 2 if head else 1])
        whole += lora.rank * (shape.vocab_size + shape.hidden_size) * len(ends)
    return shape.num_hidden_layers * per_layer + whole


def _saved_whole(shape: Shape, lora: LoraSection, head: bool) -> int:
    """Weights of the modules that are trained whole. PEFT takes every module whose name ends so; a path counts as its
    last part. Tied ends are one.

    Raises:
        PlanError: none ends so.
    """
    layers, end = shape.num_hidden_layers, shape.vocab_size * shape.hidden_size
    embedding, head_name, norm = shape.family.ends
    sizes = {name: layers * _weights(shape, width) for name, width in shape.norms.items()}
    sizes |= {norm: _weights(shape, shape.hidden_size), embedding: end, head_name: end}
    for name, (inputs, outputs) in shape.linears.items():
        sizes[name] = layers * (inputs * outputs + (outputs if name in shape.biased else 0))
    saved = set()
    for path in lora.modules_to_save:
        found = {name for name in sizes if name.endswith(path.rpartition(".")[2])}
        if not found:
            raise PlanError(f"model.lora.modules_to_save: the model has no '{path}'; it has {', '.join(sizes)}")
        saved |= found
    if not head or (shape.tie_word_embeddings and {embedding, head_name} <= saved):
        saved -= {head_name}
    return sum(sizes[name] for name in saved)


def saves_embedding(shape: Shape, lora: LoraSection, *, head: bool) -> bool:
    """Whether the adapter trains the token embedding whole, by its own name or as the head tied to it."""
    names, (embedding, head_name, _) = _last_parts(lora.modules_to_save), shape.family.ends
    return embedding in names or (head and shape.tie_word_embeddings and head_name in names)
