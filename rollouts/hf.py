"""The engine that is always there: transformers, in this process, on the trainer's own module.

Replies are sampled by a decode loop of our own (`rollouts.decode`) where the model can be (`rollouts.decodable`), by
transformers' `generate` elsewhere, and the log says so; both draw the same tokens.

Nothing of the caller's world is disturbed: not the global random generators, not the modules' training mode, not their
gradients. Nothing of the model's own `generation_config` leaks into sampling (Qwen2.5-Instruct ships top_k 20 and a
repetition penalty): while a call runs, the model has a neutral one.

Replies come back in the order of the protocol. With `params.seed`, a reply depends on its prompt's place in the list
and on the weights, not on `batch_size` (to the rounding of batched matrix products).

Every rank has an engine of its own and samples its own prompts. Modules wrapped by DDP are unwrapped by the caller,
and a sharded one is gathered while it samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from align.runtime.padding import pad_left
from align.runtime.peft_model import base_of
from rollouts.decodable import probe, why_not
from rollouts.decode import decode
from rollouts.errors import RolloutError
from rollouts.exact import TrainerPass, settle
from rollouts.protocol import Completion, SamplingParams
from rollouts.sampling import Choose, Responses

logger = logging.getLogger(__name__)


class HFEngine:
    """Samples with the module itself.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        pad_token_id: fills the left of shorter prompts; masked, so any id of the vocabulary does.
        batch_size: responses at work at once.
        autocast_dtype: runs the model under `torch.autocast` in this dtype.
        shares_module: the trainer updates `model` itself, so `update_weights` copies nothing. Else `model` is the
            engine's own; one whose checkpoints hold its tensors in another form (fused experts) cannot be.
        trainer_pass: draws every token (`rollouts.exact`); without it replies are sampled here.
    """

    def __init__(
        self,
        model: nn.Module,
        pad_token_id: int,
        batch_size: int = 64,
        *,
        autocast_dtype: torch.dtype | None = None,
        shares_module: bool = True,
        trainer_pass: TrainerPass | None = None,
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
        self.trainer_pass = trainer_pass
        self.weight_version = 0
        self._torn = False
        self._decodable: bool | None = None

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
        _require_tokens(prompts)
        responses = Responses(len(prompts) * params.n, params, model.device)
        limits = [params.max_new_tokens] * (len(prompts) * params.n)
        self._draft(prompts, params, responses.choose, limits)
        if self.trainer_pass is not None:
            settle(responses, prompts, params, self._draft, self.trainer_pass)
        return responses.completions(self.weight_version)

    def stream(self, prompt: list[int], params: SamplingParams, heard: Callable[[int], None]) -> Completion:
        """See `rollouts.protocol.Streaming`.

        Raises:
            RolloutError: as `generate`; more than one completion asked for, or an engine whose tokens a trainer draws.
        """
        if params.n != 1 or self.trainer_pass is not None:
            raise RolloutError("one reply can be heard at a time (n 1), and only one that the engine itself draws")
        _require_tokens([prompt])
        responses, ended = Responses(1, params, self._model_to_run().device), False

        def choose(logits_RV: Tensor, responses_R: Tensor, steps_R: Tensor) -> Tensor:
            nonlocal ended
            tokens_R = responses.choose(logits_RV, responses_R, steps_R)
            if not ended:  # the loop looks for ends now and then, and draws on meanwhile
                token = int(tokens_R[0])
                ended = token in params.stop_token_ids
                heard(token)
            return tokens_R

        self._draft([prompt], params, choose, [params.max_new_tokens])
        return responses.completions(self.weight_version)[0]

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

    def _decodes(self, model: nn.Module) -> bool:
        """Whether the decode loop takes the model; found out once, where its weights are sound."""
        if self._decodable is None:
            try:
                reason = why_not(model) or probe(model, self.pad_token_id)
            except FloatingPointError:  # weights are broken: this call will say so
                return False
            self._decodable = reason is None
            if reason:
                logger.info("replies are sampled by transformers' generate, not by the decode loop: %s", reason)
        return self._decodable

    def _draft(self, prompts: list[list[int]], params: SamplingParams, choose: Choose, limits: Sequence[int]) -> None:
        """Has all responses chosen; see `rollouts.exact.Draft`."""
        model = self._model_to_run()
        with _undisturbed(model, self.autocast_dtype):
            if self._decodes(model):
                decode(model, prompts, params, self.batch_size, choose, limits)
                return
            for limit in sorted(set(limits)):
                chosen = [response for response, own in enumerate(limits) if own == limit]
                self._generate(model, prompts, replace(params, max_new_tokens=limit), choose, chosen)

    def _generate(
        self,
        model: nn.Module,
        prompts: list[list[int]],
        params: SamplingParams,
        choose: Choose,
        responses: list[int],
    ) -> None:
        """Some responses by `model.generate`, in batches of prompts of like length; `choose` is told of each token."""
        responses = sorted(responses, key=lambda response: -len(prompts[response // params.n]))
        config = GenerationConfig(
            max_new_tokens=params.max_new_tokens,
            do_sample=False,  # `choose` draws
            eos_token_id=list(params.stop_token_ids) or None,
            pad_token_id=self.pad_token_id,
            use_cache=True,
        )
        for start in range(0, len(responses), self.batch_size):
            batch = responses[start : start + self.batch_size]
            rows = [prompts[response // params.n] for response in batch]
            ids_BT, mask_BT = (tensor.to(model.device) for tensor in pad_left(rows, self.pad_token_id))
            chooser = _Chooser(torch.tensor(batch, device=model.device), params.stop_token_ids, choose)
            model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                generation_config=config,
                logits_processor=LogitsProcessorList([chooser]),
                synced_gpus=False,  # the default for a sharded module: to wait for the ranks at every token
            )


def _require_tokens(prompts: Sequence[Sequence[int]]) -> None:
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise RolloutError(f"prompt {row} is empty: the model needs at least one token to continue")


class _Chooser(LogitsProcessor):
    """Has each token of a batch in `generate` chosen by us: gives scores whose argmax is that token."""

    def __init__(self, responses_B: Tensor, stops: Sequence[int], choose: Choose):
        self.responses_B, self.choose, self.step = responses_B, choose, 0
        self.stops = torch.tensor(stops, dtype=torch.int64, device=responses_B.device)
        self.rows_B = torch.arange(len(responses_B), device=responses_B.device)  # of the batch: those not at their end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.step:
            self.rows_B = self.rows_B[~torch.isin(input_ids[self.rows_B, -1], self.stops)]
        steps_B = torch.full_like(self.rows_B, self.step)
        tokens_B = self.choose(scores[self.rows_B], self.responses_B[self.rows_B], steps_B)
        self.step += 1
        scores.zero_()[self.rows_B, tokens_B] = 1.0
        return scores


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
