"""A model of a stage, by its role: what it holds for good, and what training it adds."""

from __future__ import annotations

from dataclasses import dataclass

from align.plan.activations import Body
from align.plan.count import count_adapter, saves_embedding
from align.plan.parts import MemoryPart, parts
from align.plan.precision import Precision
from align.plan.shapes import Shape
from align.recipe.fields import OptimSection
from align.recipe.model_section import ModelSection

SCALED_BLOCK = 256  # of bitsandbytes' 8-bit moments: as many share a float32 scale
IN_8_BITS = 1 + 4 / SCALED_BLOCK


@dataclass(frozen=True, slots=True)
class Model:
    """One model.

    Attributes:
        body: how its passes run.
        head: whether it has an LM head.
        own_weights: False where it is an adapter on weights that another role holds.
        adapter: whether it has an adapter's weights.
        optimizer: the recipe's name of the optimizer that trains it; None: frozen.
    """

    role: str
    body: Body
    head: bool = True
    own_weights: bool = True
    adapter: bool = False
    optimizer: str | None = None

    @property
    def adapter_size(self) -> int:
        """Parameters of the adapter."""
        if not self.adapter or self.body.lora is None:
            return 0
        return count_adapter(self.body.shape, self.body.lora, head=self.head)

    @property
    def trained(self) -> int:
        """Trained parameters; the scalar head of a reward model or critic is too small to count."""
        if self.optimizer is None:
            return 0
        if self.body.lora is not None:
            return self.adapter_size
        return self.body.count.whole if self.head else self.body.count.body

    @property
    def trained_width(self) -> int:
        """Bytes of a trained parameter and of its gradient."""
        return 4 if self.body.lora is not None else self.body.precision.weights

    def resident(self, ranks: int = 1) -> tuple[MemoryPart, ...]:
        """Weights, adapter, moments of the optimizer, and the buckets in which DDP adds gradients up."""
        weights = self.body.precision.bytes_of(self.body.count, head=self.head) if self.own_weights else 0
        moments = self._moments(self.optimizer) if self.optimizer else 0
        found = parts(self.role, weights=weights, adapters=4 * self.adapter_size, optimizer=moments)
        return found + (parts(self.role, buckets=self.gradient_bytes) if ranks > 1 else ())

    def _moments(self, optimizer: str) -> float:
        width = self.trained_width
        size = self.trained * bytes_of_moments(optimizer, width)
        shape, lora = self.body.shape, self.body.lora
        has_embedding = lora is None or saves_embedding(shape, lora, head=self.head)
        if has_embedding and optimizer in ("adamw_8bit", "lion_8bit"):  # embeddings stay in 32 bits
            wide = 8 if optimizer == "adamw_8bit" else 4
            size += self.body.count.embedding * (wide - bytes_of_moments(optimizer, width))
        return size

    @property
    def saved_bytes(self) -> int:
        """Of its folder on the disk: the adapter alone where it has one, else all weights."""
        if self.body.lora is not None:
            return 4 * self.adapter_size
        return round(self.body.precision.bytes_of(self.body.count, head=self.head))

    @property
    def checkpoint_bytes(self) -> int:
        """What of it is in a checkpoint: that, and the moments of its optimizer, paged ones too."""
        return self.saved_bytes + round(self._moments(self.optimizer.removeprefix("paged_")))

    @property
    def gradient_bytes(self) -> int:
        """All of its gradients."""
        return self.trained * self.trained_width

    def gradients(self) -> tuple[MemoryPart, ...]:
        """The same as a part."""
        return parts(self.role, gradients=self.gradient_bytes)


def bytes_of_moments(optimizer: str, width: int) -> float:
    """Bytes of optimizer state a trained parameter; torch's moments have the parameter's width. Paged ones give way:
    they lie in the host's memory when the device has none left."""
    sizes = {"adamw": 2 * width, "adamw_8bit": 2 * IN_8_BITS, "lion_8bit": IN_8_BITS}
    return sizes.get(optimizer, 0)


def trained_model(
    role: str, shape: Shape, model: ModelSection, optimizer: OptimSection, *, head: bool = True, adapted: bool = True
) -> Model:
    """A model in training, with an adapter where the recipe has one (and `adapted`: the base stage never has)."""
    lora = model.lora if model.adapter != "none" and adapted else None
    body = Body(
        shape,
        Precision.of(model, quantized=adapted),
        model.attn_implementation,
        lora,
        checkpointing=model.gradient_checkpointing,
    )
    return Model(role, body, head, adapter=lora is not None, optimizer=optimizer.optimizer)


def frozen_model(role: str, shape: Shape, model: ModelSection, *, head: bool, adapter: bool = False) -> Model:
    """A model that is only asked; `adapter`: it is one, on the base's weights."""
    body = Body(shape, Precision.of(model, quantized=True), model.attn_implementation, model.lora, trained=False)
    return Model(role, body, head, adapter=adapter and model.adapter != "none")
