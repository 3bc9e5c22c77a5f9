"""The engine that is always there: `generate` of transformers, in this process, on the trainer's own module.

Nothing of the caller's world is disturbed: not the global random generators, not the modules' training mode, not their
gradients. Nothing of the model's own `generation_config` leaks into sampling (Qwen2.5-Instruct ships top_k 20 and a
repetition penalty): while a call runs, the model has a neutral one.

Prompts are sorted by length into batches, so that little is padded (left, with attention mask); replies come back in
the order of the protocol. With `params.seed`, a reply depends on its prompt's place in the list and on the weights, not
on `batch_size` (to the rounding of batched matrix products).

Every rank has an engine of its own and samples its own prompts. Modules wrapped by DDP are unwrapped by the caller,
and a sharded one is gathered while it samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessorList

from align.runtime.padding import pad_left
from align.runtime.peft_model import base_of
from rollouts.errors import RolloutError
from rollouts.protocol import Completion, SamplingParams
from rollouts.sampling import Drawn, TokenSampler


class HFEngine:
    """Samples with `model.generate`.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        pad_token_id: fills the left of shorter prompts; masked, so any id of the vocabulary does.
        batch_size: responses generated at once.
        autocast_dtype: runs the model under `torch.autocast` in this dtype.
        shares_module: the trainer updates `model` itself, so `update_weights` copies nothing. Else `model` is the
            engine's own; one whose checkpoints hold its tensors in another form (fused experts) cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        pad_token_id: int,
        batch_size: int = 64,
        *,
        autocast_dtype: torch.dtype | None = None,
        shares_module: bool = True,
    ):
        if batch_size < 1:
            raise RolloutError(f"batch_size must be at least 1, got {batch_size}")
        if not hasattr(model, "generate"):
            raise RolloutError(
                f"{type(model).__name__} has no generate method: unwrap the model (DDP, torch.compile) first"
            )
        self.model: nn.Module | None = model
        self.pad_token_id, self.batch_size = pad_token_id, batch_size
        self.autocast_dtype, self.shares_module = autocast_dtype, shares_module
        self.weight_version = 0
        self._torn = False

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.autocast_dtype or self._open_model().dtype

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """`params.n` completions per prompt, prompt-major. Without a seed every call draws anew.

        Raises:
            RolloutError: an empty prompt, weights that came in part, or logits that are not finite.
        """
        model = self._model_to_run()
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise RolloutError(f"prompt {row} is empty: the model needs at least one token to continue")
        rows = [prompt for prompt in prompts for _ in range(params.n)]
        uniforms = _uniforms(len(rows), params)
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))  # too long for the memory: fails at once
        completions: list[Completion | None] = [None] * len(rows)
        with _undisturbed(model, self.autocast_dtype):
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                batch = self._batch(model, [rows[row] for row in chosen], params, uniforms[chosen])
                for row, completion in zip(chosen, batch, strict=True):
                    completions[row] = completion
        return completions

    def token_logprobs(self, sequences: list[list[int]]) -> list[tuple[float, ...]]:
        """See `rollouts.protocol.Scoring`."""
        model, scores = self._model_to_run(), []
        with _undisturbed(model, self.autocast_dtype):
            for sequence in sequences:
                ids_1T = torch.tensor([sequence], device=model.device)
                logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1]
                logps_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)).log_softmax(-1)
                scores.append(tuple(logps_TV.gather(-1, ids_1T[0, 1:, None])[:, 0].tolist()))
        return scores

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes the version number; copies the tensors, as they come, only when the module is not the trainer's own.

        Raises:
            RolloutError: a name the model lacks, a missing name, or another shape; the engine then does not sample
                until a whole update has come.
        """
        if not self.shares_module:
            own = dict(self._open_model().named_parameters())
            self._torn = True
            for name, tensor in named_tensors:
                if (parameter := own.pop(name, None)) is None:
                    raise RolloutError(f"weights do not match the engine's model: it lacks '{name}', or got it twice")
                if tensor.shape != parameter.shape:
                    raise RolloutError(f"weight '{name}' is {tuple(tensor.shape)}, expected {tuple(parameter.shape)}")
                with torch.no_grad():
                    parameter.copy_(tensor)
            if own:
                raise RolloutError(f"weights do not match the engine's model: '{next(iter(own))}' is missing")
            self._torn = False
        self.weight_version = version

    def sleep(self) -> None:
        """Gives the device's cached memory back to the trainer."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def wake(self) -> None:
        """Nothing to do: the module is the trainer's."""

    def close(self) -> None:
        """Lets go of the model."""
        self.model = None

    def _open_model(self) -> nn.Module:
        if self.model is None:
            raise RolloutError("this engine was closed")
        return self.model

    def _model_to_run(self) -> nn.Module:
        if self._torn:
            raise RolloutError("this engine got only a part of its last weights: push all of them again")
        return self._open_model()

    def _batch(
        self, model: nn.Module, prompts: list[list[int]], params: SamplingParams, uniforms_BT: Tensor
    ) -> list[Completion]:
        ids_BT, mask_BT = (rows.to(model.device) for rows in pad_left(prompts, self.pad_token_id))
        sampler = TokenSampler(params, uniforms_BT.to(model.device))
        config = GenerationConfig(
            max_new_tokens=params.max_new_tokens,
            do_sample=False,  # the sampler draws
            eos_token_id=list(params.stop_token_ids) or None,
            pad_token_id=self.pad_token_id,
            use_cache=True,
        )
        full_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            generation_config=config,
            logits_processor=LogitsProcessorList([sampler]),
            synced_gpus=False,  # the default for a sharded module: to wait for the ranks at every token
        )
        drawn = sampler.finish()
        stops = frozenset(params.stop_token_ids)
        ids = full_BT[:, ids_BT.shape[1] :].tolist()
        return [self._completion(row, reply, drawn, stops) for row, reply in enumerate(ids)]

    def _completion(self, row: int, ids: list[int], drawn: Drawn, stops: frozenset[int]) -> Completion:
        end = next((at + 1 for at, token in enumerate(ids) if token in stops), None)
        return Completion(
            token_ids=tuple(ids[:end]),
            logprobs=tuple(drawn.logprobs[row][:end]),
            finish_reason="length" if end is None else "stop",
            weight_version=self.weight_version,
            kept_mass=None if drawn.kept_mass is None else tuple(drawn.kept_mass[row][:end]),
            support=None if drawn.supports is None else tuple(drawn.supports[row][:end]),
        )


def _uniforms(rows: int, params: SamplingParams) -> Tensor:
    """uniforms_BT, float64, on the CPU whatever the model's device, so that a seed means the same everywhere."""
    if params.temperature == 0:
        return torch.zeros(rows, 1, dtype=torch.float64)
    generator = torch.Generator()
    if params.seed is None:
        generator.seed()
    else:
        generator.manual_seed(params.seed)
    return torch.rand(rows, params.max_new_tokens, generator=generator, dtype=torch.float64)


@contextmanager
def _undisturbed(model: nn.Module, autocast_dtype: torch.dtype | None) -> Iterator[None]:
    """Evaluation mode, no gradients and a neutral generation config for the while; everything as it was afterwards."""
    owner = base_of(model)  # PEFT delegates to it
    modes = [(module, module.training) for module in model.modules()]
    shipped = owner.generation_config
    model.eval()
    owner.generation_config = GenerationConfig()
    autocast = torch.autocast(model.device.type, dtype=autocast_dtype) if autocast_dtype is not None else nullcontext()
    try:
        with torch.no_grad(), autocast:
            yield
    finally:
        owner.generation_config = shipped
        for module, mode in modes:
            module.training = mode
