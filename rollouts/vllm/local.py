"""A vLLM engine in this process, with everything it does inside the process's guard."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings
from rollouts.vllm.process_guard import PrivateWorld, undisturbed, without_vllms_cleanup
from rollouts.vllm.start import start
from rollouts.vllm.weights import abandon_reload, repack_for_cpu

if TYPE_CHECKING:
    import vllm
    from vllm.lora.request import LoRARequest

ALL = ("weights", "kv_cache")


class LocalVLLM:
    """vLLM's `LLM`, undisturbing, and awake when it has to be.

    Args:
        options: `mode`, `adapters` and `mask` of `start.engine_arguments`.

    Attributes:
        room: tokens of the longest request.
        on_cpu: vLLM's platform is the CPU.
    """

    def __init__(self, model: nn.Module, settings: VLLMSettings, **options: Any):
        self._llm: vllm.LLM | None = start(model, settings, **options)
        from vllm.platforms import current_platform

        self.on_cpu = current_platform.is_cpu()
        self.room = self._llm.model_config.max_model_len
        self._asleep: set[str] = set()
        if self.on_cpu:
            self._warm_up()

    def run(
        self, prompts: list[list[int]], asked: list[vllm.SamplingParams], adapter: LoRARequest | None = None
    ) -> list[vllm.RequestOutput]:
        """What vLLM makes of each prompt, in their order."""
        self.wake(ALL)
        if not prompts:
            return []
        with undisturbed():
            inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
            return self._open().generate(inputs, asked, use_tqdm=False, lora_request=adapter)

    def reload(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """New weights in place of the old ones, in this engine's memory.

        Raises:
            RolloutError: vLLM could not take them.
            Exception: what the stream itself raises.
        """
        self.wake(("weights",))
        llm, broken = self._open(), []

        def stream() -> Iterator[tuple[str, Tensor]]:
            try:
                yield from named_tensors
            except Exception as error:  # not GeneratorExit: vLLM stopped reading
                broken.append(error)
                raise

        with undisturbed():
            try:
                llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream()})
            except BaseException as error:
                llm.apply_model(partial(abandon_reload, config=llm.llm_engine.vllm_config))
                if broken or not isinstance(error, Exception):
                    raise
                raise RolloutError(f"vLLM could not take the new weights: {type(error).__name__}: {error}") from error
            if self.on_cpu:
                llm.apply_model(repack_for_cpu)
            self._forget()

    def load_adapter(self, request: LoRARequest) -> None:
        """Reads an adapter's files; it is used by runs that name it."""
        self.wake(ALL)
        with undisturbed():
            self._open().llm_engine.add_lora(request)
            self._forget()

    def sleep(self) -> None:
        """The cache is dropped and the weights wait in the host's memory (vLLM's level 1)."""
        if not self._asleep:
            with undisturbed():
                self._open().sleep(level=1)
            self._asleep = set(ALL)

    def wake(self, tags: tuple[str, ...] = ALL) -> None:
        """These parts are on the device again.

        Raises:
            RolloutError: vLLM cannot bring them back; most often the trainer has their memory.
        """
        llm = self._open()
        if asleep := [tag for tag in tags if tag in self._asleep]:
            with undisturbed():
                try:
                    llm.wake_up(asleep)
                except Exception as error:
                    raise RolloutError(
                        f"vLLM could not take its GPU memory back after the update ({type(error).__name__}: {error}): "
                        "lower ppo.rollout.vllm.memory_share or the trainer's micro_batch_size"
                    ) from error
            self._asleep -= set(asleep)

    def close(self) -> None:
        """Frees weights and cache; the process's own distributed groups stay as they are."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
        with undisturbed():
            with without_vllms_cleanup():
                llm.llm_engine.engine_core.shutdown()
            PrivateWorld.leave()
            del llm
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _warm_up(self) -> None:
        """Pays for the sampler's compilation, and asks for AMX.

        Else, in bfloat16, the first attention of a process would be an illegal instruction when it reads at most 4
        tokens (vLLM 0.32).
        """
        from vllm import SamplingParams

        if hasattr(torch.cpu, "_init_amx"):
            torch.cpu._init_amx()
        params = SamplingParams(max_tokens=2, top_p=0.9, seed=0, logprobs=0, ignore_eos=True, detokenize=False)
        self.run([[0] * max(1, min(32, self.room - 2))], [params])
        self._forget()

    def _forget(self) -> None:
        """Empties the prefix cache, whose keys and values older weights made."""
        if not self._open().reset_prefix_cache():
            raise RolloutError("vLLM could not empty its prefix cache: requests are still running")

    def _open(self) -> vllm.LLM:
        if self._llm is None:
            raise RolloutError("this engine was closed")
        return self._llm
