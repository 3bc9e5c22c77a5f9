"""Bringing the policy's weights to an engine that has its own, and proving that they arrived.

What goes over: whole weights under checkpoint names, adapters merged in ("merge"), or the adapter alone on top of base
weights that went over once ("adapter", where the engine `takes_adapters`). An engine on the same device costs a
second copy of the weights either way: the trainer's and its own. Of a 4-bit policy (QLoRA) these take 4 bits in the
trainer and 16 in the engine, merged or not, as it holds weights in the dtype it computes in. On top of both stands
one tensor at a time (see `rollouts.weights`). "merge" pushes all weights every iteration and samples at the base
model's speed, "adapter" pushes little and samples slower (on a CPU at a third of the speed).

Under FSDP2 tensors are gathered one by one, never a whole second copy; that is collective, so every rank reads the
stream to its end even where its engine takes nothing of it, or has failed.

After every push engine and trainer score one fixed sequence (`rollouts.probe`). That costs the engine one prompt of
160 tokens twice and 2 sampled ones, and the trainer one forward pass of 162 tokens without gradients. Too large a
difference stops the run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from align.runtime.errors import AlignError
from align.runtime.peft_model import base_of
from align.trainers import sharding
from align.trainers.optimization import TrainedModel
from align.trainers.ppo.forward import reply_logprobs
from align.trainers.ppo.guards import together
from align.trainers.ppo.types import TokenBatch, full_logprobs
from rollouts import probe
from rollouts.protocol import Engine, Scoring
from rollouts.weights import adapter_tensors, checkpoint_tensors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """A copy of weights on the CPU that an engine is to have later.

    Attributes:
        adapter: its config, where the tensors are an adapter's; None: they are whole weights.
        tensors: by name; taken out as they are sent.
    """

    version: int
    adapter: dict[str, Any] | None
    tensors: list[tuple[str, Tensor]]

    def taken(self) -> Iterator[tuple[str, Tensor]]:
        """Its tensors, each freed once the next is asked for."""
        while self.tensors:
            yield self.tensors.pop(0)


class WeightSync:
    """Keeps `engine` at the weights of `policy`. Every rank calls every method.

    Attributes:
        pushed_version: what an engine with weights of its own has; None where nobody knows. It is the engine's, so no
            checkpoint holds it: a run that resumes pushes.
    """

    def __init__(self, engine: Engine, policy: TrainedModel, accelerator: Accelerator, tokenizer: Any, pad_id: int):
        self.engine, self.policy, self.accelerator = engine, policy, accelerator
        self.tokenizer, self.pad_id = tokenizer, pad_id
        self.pushed_version: int | None = None

    @property
    def sampled_modules(self) -> list[nn.Module]:
        """The modules that must be whole on every rank while it samples: the policy, where the engine runs it."""
        return [self.policy.module] if self.engine.shares_module else []

    def push_if_new(self, version: int) -> None:
        """Push the policy's weights, which are of `version`, if the engine does not have them yet.

        Raises:
            TrainingError: see `push`.
        """
        if self.pushed_version == version or self.engine.shares_module:
            return
        figures = self.push(version)
        if self.accelerator.is_main_process:
            logger.info("the engine has the policy's weights%s", _in_words(figures))

    def push(self, version: int, *, base: bool = False) -> dict[str, float]:
        """Bring the policy's weights to the engine, and compare the two.

        An engine that shares the policy's module only takes the version, and nothing is measured.

        Args:
            version: of the weights.
            base: the engine's base weights, under an adapter, are not the policy's; the first push brings them anyway.

        Returns:
            `seconds/sync`, and `engine/probe_max` (nats a token, largest over ranks) of an engine that scores.

        Raises:
            TrainingError: on every rank, when the engine of any fails or is too far from the trainer.
        """
        engine, policy = self.engine, self.policy.raw
        if engine.shares_module:
            engine.update_weights((), version)
            self.pushed_version = version
            return {}
        start = time.perf_counter()
        sharding.reshard(policy)
        first, self.pushed_version = self.pushed_version is None, None
        if not getattr(engine, "takes_adapters", False):
            _send(lambda stream: engine.update_weights(stream, version), checkpoint_tensors(policy, sharding.full))
        else:
            if first or base:
                weights = checkpoint_tensors(policy, sharding.full, merge=False)
                _send(lambda stream: engine.update_weights(stream, version), weights)
            config, tensors = adapter_tensors(policy, sharding.full)
            _send(lambda stream: engine.update_adapter(config, stream, version), tensors)
        figures = {"engine/probe_max": self._probe(version)} if isinstance(engine, Scoring) else {}
        self.pushed_version = version
        return {"seconds/sync": time.perf_counter() - start, **figures}

    @torch.no_grad()
    def held(self, version: int) -> HeldWeights:
        """A copy of the policy's weights, which are of `version`, to `deliver` while it trains on."""
        policy, config = self.policy.raw, None
        sharding.reshard(policy)
        if getattr(self.engine, "takes_adapters", False):
            config, tensors = adapter_tensors(policy, sharding.full)
        else:
            tensors = checkpoint_tensors(policy, sharding.full)
        return HeldWeights(version, config, [(name, tensor.detach().to("cpu", copy=True)) for name, tensor in tensors])

    def deliver(self, held: HeldWeights) -> None:
        """Bring the engine of this process a copy, which asks no other rank and is not probed; may run beside training.

        Raises:
            AlignError: the engine's, which does not take it.
        """
        self.pushed_version = None
        if held.adapter is None:
            self.engine.update_weights(held.taken(), held.version)
        else:
            self.engine.update_adapter(held.adapter, held.taken(), held.version)
        self.pushed_version = held.version

    @torch.no_grad()
    def _probe(self, version: int) -> float:
        """Largest difference between engine and trainer, over ranks."""
        engine, config = self.engine, self.policy.raw.config
        room = min(config.max_position_embeddings, getattr(_settings(engine), "max_model_len", probe.LENGTH * 2))
        vocabulary = min(config.vocab_size, len(self.tokenizer))
        prompt = together(lambda: probe.probe_ids(vocabulary, room, self.tokenizer.all_special_ids))

        def ask() -> tuple[list[int], tuple[float, ...], tuple[float, ...] | None]:
            engine.wake()
            reply = engine.generate([prompt], probe.drawing_params())[0]
            whole = [*prompt, *reply.token_ids]
            scores = engine.token_logprobs([whole])[0]
            engine.sleep()
            return whole, scores, full_logprobs(reply)

        whole, scores, drawn = together(ask)
        batch = TokenBatch.from_ids([whole[:1]], [whole[1:]], self.pad_id).to(self.accelerator.device)
        own = reply_logprobs(self.policy.module, batch, 1.0)[0].tolist()
        mixed = sharding.COMPUTE_DTYPES.get(self.accelerator.mixed_precision)
        dtypes = (mixed or _weight_dtype(self.policy.raw), _engine_dtype(engine, self.policy.raw))
        allowed = probe.tolerance(dtypes, getattr(_settings(engine), "probe_tolerance", None))

        def compare() -> float:
            difference = probe.Difference.of(scores, own, drawn)
            probe.check(difference, allowed, version, dtypes)
            return difference.largest

        largest = together(compare)
        return max(gather_object([largest])) if self.accelerator.num_processes > 1 else largest


class _TensorStream:
    """Named tensors that a consumer can neither close nor leave half read: the other ranks gather with this one."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]):
        self._tensors = iter(tensors)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return self

    def __next__(self) -> tuple[str, Tensor]:
        return next(self._tensors)


def _send(take: Callable[[_TensorStream], None], tensors: Iterable[tuple[str, Tensor]]) -> None:
    stream = _TensorStream(tensors)

    def work() -> None:
        try:
            take(stream)
        except AlignError:
            _read_on(stream)
            raise
        _read_on(stream)

    together(work)


def _read_on(stream: _TensorStream) -> None:
    for _ in stream:
        pass


def _in_words(figures: dict[str, float]) -> str:
    apart = figures.get("engine/probe_max")
    probed = "" if apart is None else f"; its log-probabilities differ from the trainer's by at most {apart:.1g} nats"
    return f" after {figures['seconds/sync']:.1f} s{probed}"


def _settings(engine: Engine) -> Any:
    return getattr(engine, "settings", None)


def _engine_dtype(engine: Engine, policy: nn.Module) -> torch.dtype:
    named = getattr(_settings(engine), "dtype", "auto")
    return getattr(engine, "dtype", None) or (_weight_dtype(policy) if named == "auto" else getattr(torch, named))


def _weight_dtype(module: nn.Module) -> torch.dtype:
    """Of its base: an adapter may be finer."""
    base = base_of(module)  # a role holds its adapter alone
    dtypes = [p.dtype for name, p in base.named_parameters() if p.is_floating_point() and "lora_" not in name]
    return max(set(dtypes), key=dtypes.count)
