"""Exact numbers of parameters, by part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from align.plan.shapes import PlanError, Shape
from align.recipe.model_section import LoraSection

ENDS = ("embed_tokens", "lm_head")


@dataclass(frozen=True, slots=True)
class Count:
    """Parameters of a causal LM.

    Attributes:
        embedding: the token embedding.
        linear: the weights of all linear layers between embedding and head.
        head: of the LM head, 0 where it is the embedding.
        rest: norms and biases.
    """

    embedding: int
    linear: int
    head: int
    rest: int

    @property
    def body(self) -> int:
        """All but the LM head: what a reward model and a critic have beside their own head."""
        return self.embedding + self.linear + self.rest

    @property
    def whole(self) -> int:
        """The causal LM."""
        return self.body + self.head


def count(shape: Shape) -> Count:
    """Parameters of a causal LM of this shape."""
    h, layers = shape.hidden_size, shape.num_hidden_layers
    linears = shape.linears
    biases = sum(linears[name][1] for name in _biased(shape))
    per_layer = 2 * h + biases + (2 * shape.head_dim if shape.qk_norm else 0)
    embedding = shape.vocab_size * h
    return Count(
        embedding=embedding,
        linear=layers * sum(inputs * outputs for inputs, outputs in linears.values()),
        head=0 if shape.tie_word_embeddings else embedding,
        rest=layers * per_layer + h,
    )


def _biased(shape: Shape) -> tuple[str, ...]:
    attention = (("q_proj", "k_proj", "v_proj") if shape.qkv_bias else ()) + (("o_proj",) if shape.output_bias else ())
    return attention + (("gate_proj", "up_proj", "down_proj") if shape.mlp_bias else ())


def _last_parts(paths: Iterable[str]) -> set[str]:
    return {path.rpartition(".")[2] for path in paths}


def adapted(shape: Shape, lora: LoraSection) -> tuple[str, ...]:
    """Which linear layers of a layer have an adapter; a path counts as its last part.

    Raises:
        PlanError: a target that the model does not have.
    """
    if lora.targets == "all-linear":
        return tuple(shape.linears)
    named = _last_parts(lora.targets)
    if unknown := sorted(named - shape.linears.keys() - set(ENDS)):
        known = ", ".join((*shape.linears, *ENDS))
        raise PlanError(f"model.lora.targets: the model has no '{unknown[0]}'; it has {known}")
    return tuple(name for name in shape.linears if name in named)


def count_adapter(shape: Shape, lora: LoraSection, *, head: bool = True) -> int:
    """Trained parameters of one adapter: A and B (with DoRA a norm a row), and modules that are trained whole.

    Args:
        head: whether the model has an LM head; else what is said of it is left out.
    """
    pairs: Iterable[tuple[int, int]] = (shape.linears[name] for name in adapted(shape, lora))
    per_layer = sum(lora.rank * (inputs + outputs) + (outputs if lora.dora else 0) for inputs, outputs in pairs)
    whole = _saved_whole(shape, lora, head)
    if lora.targets != "all-linear":
        ends = _last_parts(lora.targets) & set(ENDS if head else ENDS[:1])
        whole += lora.rank * (shape.vocab_size + shape.hidden_size) * len(ends)
    return shape.num_hidden_layers * per_layer + whole


def _saved_whole(shape: Shape, lora: LoraSection, head: bool) -> int:
    """Weights of the modules that are trained whole. PEFT takes every module whose name ends so; a path counts as its
    last part. Tied ends are one.

    Raises:
        PlanError: none ends so.
    """
    layers, end = shape.num_hidden_layers, shape.vocab_size * shape.hidden_size
    norms = {"input_layernorm": shape.hidden_size, "post_attention_layernorm": shape.hidden_size}
    norms |= {"q_norm": shape.head_dim, "k_norm": shape.head_dim} if shape.qk_norm else {}
    sizes = {name: layers * size for name, size in norms.items()}
    sizes |= {"norm": shape.hidden_size, "embed_tokens": end, "lm_head": end}
    for name, (inputs, outputs) in shape.linears.items():
        sizes[name] = layers * (inputs * outputs + (outputs if name in _biased(shape) else 0))
    saved = set()
    for path in lora.modules_to_save:
        found = {name for name in sizes if name.endswith(path.rpartition(".")[2])}
        if not found:
            raise PlanError(f"model.lora.modules_to_save: the model has no '{path}'; it has {', '.join(sizes)}")
        saved |= found
    if not head or (shape.tie_word_embeddings and set(ENDS) <= saved):
        saved -= {"lm_head"}
    return sum(sizes[name] for name in saved)


def saves_embedding(shape: Shape, lora: LoraSection, *, head: bool) -> bool:
    """Whether the adapter trains the token embedding whole, by its own name or as the head tied to it."""
    names = _last_parts(lora.modules_to_save)
    return "embed_tokens" in names or (head and shape.tie_word_embeddings and "lm_head" in names)
