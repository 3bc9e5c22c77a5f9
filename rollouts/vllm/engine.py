"""vLLM in this process: the policy's weights are copied into an engine of its own, which samples several times faster.

The engine is alone on its rank's device (tensor parallelism needs `vllm_server`) and shares nothing with the trainer:
weights come by `update_weights`, before the first of which nothing is sampled. The hosting process is left as it was,
and does not look distributed because of vLLM (see `isolation`); with several ranks each has its own engine.
Calls come from the thread that trains: while one runs, no other may draw from the process's random generators.

On a CPU: no sleeping (nothing would be freed), eager, float32 or bfloat16. An own seed for every prompt of a call makes
a reply independent of the other prompts, up to the rounding of matrix products, which in bfloat16 depends on how many
sequences run at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from align.runtime.peft_model import base_of
from rollouts.errors import RolloutError
from rollouts.exact import TrainerPass, settle
from rollouts.protocol import Completion, SamplingParams
from rollouts.sampling import Choose, Responses
from rollouts.settings import VLLMSettings
from rollouts.vllm import requests
from rollouts.vllm.local import LocalVLLM
from rollouts.vllm.weights import checked
from rollouts.weights import checkpoint_names

if TYPE_CHECKING:
    import vllm

logger = logging.getLogger(__name__)


class VLLMEngine:
    """Samples with vLLM in this process.

    Args:
        model: the trainer's module, a transformers model or a PEFT model around one; only its configuration, names
            and shapes are read.
        settings: of the engine.
        temperature: of the rollouts to come. vLLM's log-probabilities are of one kind for an engine's life: those of
            the full distribution at temperature 1, else those of the distribution that is drawn from.
        return_support: some calls ask for the support (on a GPU only).
        takes_adapters: LoRA adapters come by themselves through `update_adapter`, on top of whole weights.
        trainer_pass: draws every token (`rollouts.exact`); without it vLLM does.

    Raises:
        RolloutError: vLLM is not installed or refuses the settings.
    """

    shares_module = False

    def __init__(
        self,
        model: nn.Module,
        settings: VLLMSettings,
        *,
        temperature: float = 1.0,
        return_support: bool = False,
        takes_adapters: bool = False,
        trainer_pass: TrainerPass | None = None,
    ):
        if settings.tensor_parallel > 1:
            raise RolloutError(
                f"vLLM in the trainer's process runs on one device: for tensor_parallel {settings.tensor_parallel} "
                "set ppo.rollout.engine: vllm_server"
            )
        self.settings, self.takes_adapters, self.trainer_pass = settings, takes_adapters, trainer_pass
        self.weight_version = 0
        self._mode, self._mask = requests.logprobs_mode(temperature, return_support), return_support
        self._shapes = checkpoint_names(model, merge=not takes_adapters)
        self._vocabulary, self._device = base_of(model).config.vocab_size, next(model.parameters()).device
        self._unusable: str | None = "has no weights yet: push them by update_weights first"
        self._told = False
        options = {"adapters": takes_adapters, "mask": return_support, "chosen": trainer_pass is not None}
        self._local = LocalVLLM(model, settings, mode=self._mode, **options)

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """`params.n` completions per prompt, prompt-major. Without a seed every call draws anew.

        Raises:
            RolloutError: an empty or too long prompt, an id outside the vocabulary, no weights, or vLLM failed.
        """
        if params.return_support and not self._mask and params.temperature > 0:
            raise RolloutError(
                "this vLLM engine does not record which ids could be drawn (vLLM does on a GPU alone, when it is built "
                "for it): set ppo.rollout.engine: hf"
            )
        room = self.settings.max_model_len - params.max_new_tokens
        for row, prompt in enumerate(prompts):
            self._check(prompt, f"prompt {row}", room, f"max_new_tokens {params.max_new_tokens}")
        if self.trainer_pass is not None:
            return self._drawn_by_trainer(prompts, params, self.trainer_pass)
        asked = requests.request_params(params, len(prompts), self._vocabulary, mask=self._mask)
        return [
            requests.completion(reply, params, self._mode, self.weight_version)
            for output in self._sample(prompts, asked)
            for reply in (output.outputs if params.temperature > 0 else output.outputs * params.n)
        ]

    def stream(self, prompt: list[int], params: SamplingParams, heard: Callable[[int], None]) -> Completion:
        """See `rollouts.protocol.Streaming`.

        Raises:
            RolloutError: as `generate`; more than one completion asked for, or an engine whose tokens a trainer draws.
        """
        if params.n != 1 or self.trainer_pass is not None:
            raise RolloutError("one reply can be heard at a time (n 1), and only one that the engine itself draws")
        room = self.settings.max_model_len - params.max_new_tokens
        self._check(prompt, "the prompt", room, f"max_new_tokens {params.max_new_tokens}")
        (asked,) = requests.request_params(params, 1, self._vocabulary, mask=self._mask)
        if self._unusable is not None:
            raise RolloutError(f"the vLLM engine {self._unusable}")
        output = self._local.stream(prompt, asked, heard)
        return requests.completion(output.outputs[0], params, self._mode, self.weight_version)

    def token_logprobs(self, sequences: list[list[int]]) -> list[tuple[float, ...]]:
        """See `rollouts.protocol.Scoring`.

        Raises:
            RolloutError: as `generate`.
        """
        for row, sequence in enumerate(sequences):
            self._check(sequence, f"sequence {row}", self._local.room - 1, "the token that vLLM draws after it")
        outputs = self._sample(sequences, requests.scoring_params(len(sequences)))
        return [requests.prompt_scores(output) for output in outputs]

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes every weight of the model, under checkpoint names, one after the other; an adapter is dropped.

        Raises:
            RolloutError: a wrong, repeated or missing name, or another shape; the engine does not sample until a whole
                update has come.
            Exception: what the stream itself raises; the same then.
        """
        self._local.wake(("weights",))
        self._unusable = "got only a part of its last weights: push all of them again"
        self._local.drop_adapter()
        self._local.reload(checked(named_tensors, self._shapes))
        self._unusable, self.weight_version = None, version

    def update_adapter(self, config: dict[str, Any], named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes a LoRA adapter in place of the last one; the whole weights, those of the base alone, stay.

        Args:
            config: the content of PEFT's `adapter_config.json`.
            named_tensors: what PEFT's `adapter_model.safetensors` holds.

        Raises:
            RolloutError: the engine was not built for adapters, has no weights yet, or vLLM refuses the adapter.
        """
        if not self.takes_adapters:
            raise RolloutError("this engine takes whole weights only: build it with takes_adapters, or merge and push")
        if self._unusable not in (None, _NO_ADAPTER):
            raise RolloutError(f"the vLLM engine {self._unusable}")
        self._unusable = _NO_ADAPTER
        self._local.load_adapter(config, named_tensors)
        self._unusable, self.weight_version = None, version

    def sleep(self) -> None:
        """Gives the GPU's memory to the trainer; on a CPU nothing could be freed, which is logged once."""
        if not self.settings.sleep:
            return
        if not self._local.on_cpu:
            self._local.sleep()
        elif not self._told:
            self._told = True
            logger.info("vLLM frees nothing on a CPU while the trainer updates: its cache keeps its memory")

    def wake(self) -> None:
        """Weights and cache are on the GPU again."""
        self._local.wake()

    def close(self) -> None:
        """Frees everything; later calls are refused."""
        self._local.close()

    def _drawn_by_trainer(
        self, prompts: list[list[int]], params: SamplingParams, trainer_pass: TrainerPass
    ) -> list[Completion]:
        count = len(prompts) * params.n
        responses = Responses(count, params, self._device)
        self._draft(prompts, params, responses.choose, [params.max_new_tokens] * count)
        settle(responses, prompts, params, self._draft, trainer_pass)
        return responses.completions(self.weight_version)

    def _draft(self, prompts: list[list[int]], params: SamplingParams, choose: Choose, limits: Sequence[int]) -> None:
        """See `rollouts.exact.Draft`."""
        from rollouts.vllm.chooser import choosing

        repeated = [prompt for prompt in prompts for _ in range(params.n)]
        with choosing(choose):
            self._sample(repeated, requests.chosen_params(params, limits))

    def _sample(self, prompts: list[list[int]], asked: list[vllm.SamplingParams]) -> list[vllm.RequestOutput]:
        self._local.wake()
        if self._unusable is not None:
            raise RolloutError(f"the vLLM engine {self._unusable}")
        reason, self._unusable = self._unusable, "stopped in the middle of its work: close it and build another"
        try:
            outputs = self._local.sample(prompts, asked)
        except Exception as error:
            raise RolloutError(f"vLLM failed while sampling: {type(error).__name__}: {error}") from error
        self._unusable = reason
        return outputs

    def _check(self, ids: list[int], what: str, room: int, beside: str) -> None:
        requests.check_ids(ids, what, self._vocabulary)
        if len(ids) > room:
            raise RolloutError(
                f"{what} has {len(ids)} tokens, but beside {beside} only {max(room, 0)} fit into max_model_len "
                f"{self.settings.max_model_len}: shorten it or raise ppo.rollout.vllm.max_model_len"
            )


_NO_ADAPTER = "lost its adapter: push it again"
