"""vLLM in this process: the policy's weights are copied into an engine of its own, which samples several times faster.

The engine is alone on its rank's device (tensor parallelism needs `vllm_server`) and shares nothing with the trainer:
weights come by `update_weights`, before the first of which nothing is sampled. The hosting process is left as it was,
and does not look distributed because of vLLM (see `vllm_process_guard`); with several ranks each has its own engine.

On a CPU: no sleeping (nothing would be freed), eager, float32 or bfloat16. An own seed for every prompt of a call makes
a reply independent of the other prompts, up to the rounding of matrix products, which in bfloat16 depends on how many
sequences run at once.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rollouts import vllm_requests as requests
from rollouts.errors import RolloutError
from rollouts.protocol import Completion, SamplingParams
from rollouts.settings import VLLMSettings
from rollouts.vllm_adapter import Adapter
from rollouts.vllm_process_guard import PrivateWorld, undisturbed, without_vllms_cleanup
from rollouts.vllm_start import plain_model, start
from rollouts.vllm_weights import checked, expected_shapes, repack_tied_head

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
        takes_adapters: LoRA adapters come by themselves through `update_adapter`, on top of the base's weights.

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
    ):
        if settings.tensor_parallel > 1:
            raise RolloutError(
                f"vLLM in the trainer's process runs on one device: for tensor_parallel {settings.tensor_parallel} "
                "set ppo.rollout.engine: vllm_server"
            )
        self._on_cpu = not torch.cuda.is_available()
        if return_support and self._on_cpu:
            raise RolloutError(_NO_MASK)
        self._mode, self._mask = requests.logprobs_mode(temperature, return_support), return_support
        self._shapes = expected_shapes(model)
        self._vocabulary = plain_model(model).config.vocab_size
        self.settings, self.takes_adapters = settings, takes_adapters
        self.weight_version = 0
        self._unusable: str | None = "has no weights yet: push them by update_weights first"
        self._asleep: set[str] = set()
        self._told = False
        self._adapter: Adapter | None = None
        self._llm: vllm.LLM | None = start(
            model, settings, mode=self._mode, adapters=takes_adapters, mask=return_support
        )
        self._room = self._llm.llm_engine.model_config.max_model_len
        if self._on_cpu:
            self._warm_up()

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """`params.n` completions per prompt, prompt-major. Without a seed every call draws anew.

        Raises:
            RolloutError: an empty or too long prompt, an id outside the vocabulary, no weights, or vLLM failed.
        """
        if params.return_support and not self._mask and params.temperature > 0:
            raise RolloutError(_NO_MASK)
        for row, prompt in enumerate(prompts):
            self._check(prompt, f"prompt {row}", self.settings.max_model_len - params.max_new_tokens)
        asked = requests.request_params(params, len(prompts), self._vocabulary, mask=self._mask)
        outputs = self._run(prompts, asked)
        return [
            requests.completion(reply, params, self._mode, self.weight_version)
            for output in outputs
            for reply in output.outputs
        ]

    def token_logprobs(self, sequences: list[list[int]]) -> list[tuple[float, ...]]:
        """See `rollouts.protocol.Scoring`.

        Raises:
            RolloutError: as `generate`.
        """
        for row, sequence in enumerate(sequences):
            self._check(sequence, f"sequence {row}", self._room - 1)
        outputs = self._run(sequences, requests.scoring_params(len(sequences)))
        return [requests.prompt_scores(output) for output in outputs]

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes every weight of the model, under checkpoint names, one after the other; an adapter is dropped.

        Raises:
            RolloutError: a wrong, repeated or missing name, or another shape; the engine does not sample until a whole
                update has come.
            Exception: what the stream itself raises; the same then.
        """
        llm = self._open_engine()
        self._wake(["weights"])
        self._unusable = "got only a part of its last weights: push all of them again"
        with undisturbed():
            llm.collective_rpc("reload_weights", kwargs={"weights_iterator": checked(named_tensors, self._shapes)})
            if self._on_cpu:
                llm.apply_model(repack_tied_head)
            self._forget()
        self._drop_adapter()
        self._unusable, self.weight_version = None, version

    def update_adapter(self, config: dict[str, Any], named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes a LoRA adapter in place of the last one; the base's weights stay.

        Args:
            config: the content of PEFT's `adapter_config.json`.
            named_tensors: what PEFT's `adapter_model.safetensors` holds.

        Raises:
            RolloutError: the engine was not built for adapters, has no base weights yet, or vLLM refuses the adapter.
        """
        llm = self._open_engine()
        if not self.takes_adapters:
            raise RolloutError("this engine takes whole weights only: build it with takes_adapters, or merge and push")
        if self._unusable is not None and self._adapter is None:
            raise RolloutError(f"the vLLM engine {self._unusable}")
        self._wake(["weights"])
        self._unusable = "lost its adapter: push it again"
        adapter = Adapter(config, named_tensors)
        with undisturbed():
            try:
                llm.llm_engine.add_lora(adapter.request(load_inplace=True))
            except Exception as error:
                adapter.close()
                raise RolloutError(f"vLLM refused the adapter: {error}") from error
            self._forget()
        self._drop_adapter()
        self._adapter, self._unusable, self.weight_version = adapter, None, version

    def sleep(self) -> None:
        """Gives the GPU's memory to the trainer: the cache is dropped, the weights wait in the host's memory.

        On a CPU nothing could be freed, which is logged once.
        """
        llm = self._open_engine()
        if self._on_cpu and self.settings.sleep and not self._told:
            self._told = True
            logger.info("vLLM frees nothing on a CPU while the trainer updates: its cache keeps its memory")
        if self._on_cpu or not self.settings.sleep or self._asleep:
            return
        with undisturbed():
            self._forget()
            llm.sleep(level=1)
        self._asleep = {"weights", "kv_cache"}

    def wake(self) -> None:
        """Weights and cache are back on the GPU."""
        self._open_engine()
        self._wake(["weights", "kv_cache"])

    def close(self) -> None:
        """Frees weights and cache; the distributed groups of the process stay as they are."""
        if self._llm is None:
            return
        llm, self._llm = self._llm, None
        self._drop_adapter()
        with undisturbed():
            with without_vllms_cleanup():
                llm.llm_engine.engine_core.shutdown()
            PrivateWorld.leave()
            del llm
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _warm_up(self) -> None:
        """Pays for the sampler's compilation, and asks for AMX: in bfloat16 the first attention of a process would
        else be an illegal instruction when it reads at most 4 tokens (vLLM 0.32)."""
        if hasattr(torch.cpu, "_init_amx"):
            torch.cpu._init_amx()
        length = min(32, self.settings.max_model_len - 2)
        params = SamplingParams(temperature=0.9, top_p=0.9, max_new_tokens=2, seed=0)
        asked = requests.request_params(params, 1, self._vocabulary, mask=self._mask)
        self._unusable, reason = None, self._unusable
        self._run([[0] * max(length, 1)], asked)
        self._unusable = reason
        self._forget()

    def _run(self, prompts: list[list[int]], asked: list[vllm.SamplingParams]) -> list[vllm.RequestOutput]:
        """What vLLM makes of each prompt, in their order."""
        llm = self._open_engine()
        if self._unusable is not None:
            raise RolloutError(f"the vLLM engine {self._unusable}")
        self._wake(["weights", "kv_cache"])
        if not prompts:
            return []
        adapter = None if self._adapter is None else self._adapter.request()
        with undisturbed():
            try:
                return llm.generate(
                    [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                    asked,
                    use_tqdm=False,
                    lora_request=adapter,
                )
            except BaseException as error:
                self._unusable = "stopped in the middle of its work: close it and build another"
                if not isinstance(error, Exception):
                    raise
                raise RolloutError(f"vLLM failed while sampling: {type(error).__name__}: {error}") from error

    def _check(self, ids: list[int], what: str, room: int) -> None:
        if not ids:
            raise RolloutError(f"{what} is empty: the model needs at least one token to continue")
        if len(ids) > room:
            raise RolloutError(
                f"{what} has {len(ids)} tokens, and {room} fit into max_model_len {self.settings.max_model_len} beside "
                "the reply: raise ppo.rollout.vllm.max_model_len or shorten it"
            )
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            raise RolloutError(f"{what} has an id outside the model's vocabulary of {self._vocabulary}")

    def _wake(self, tags: list[str]) -> None:
        asleep = [tag for tag in tags if tag in self._asleep]
        if asleep:
            with undisturbed():
                self._open_engine().wake_up(asleep)
            self._asleep -= set(asleep)

    def _forget(self) -> None:
        """Empties the prefix cache, whose keys and values older weights made."""
        if not self._open_engine().reset_prefix_cache():
            raise RolloutError("vLLM could not empty its prefix cache: requests are still running")

    def _drop_adapter(self) -> None:
        if self._adapter is not None:
            self._adapter.close()
            self._adapter = None

    def _open_engine(self) -> vllm.LLM:
        if self._llm is None:
            raise RolloutError("this engine was closed")
        return self._llm


_NO_MASK = "vLLM records on a GPU alone, and only when built for it, which ids could be drawn: use rollout engine hf"
