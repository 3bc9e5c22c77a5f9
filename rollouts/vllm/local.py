"""A vLLM engine in this process, with everything it does inside the process's isolation."""

from __future__ import annotations

import gc
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from align.runtime.packages import how_to_install
from align.runtime.peft_model import base_of
from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings, memory_hint
from rollouts.vllm.isolation import PrivateWorld, quiet, undisturbed, without_vllms_cleanup
from rollouts.vllm.setup import architecture_of, engine_arguments, write_config
from rollouts.vllm.weights import abandon_reload, repack_for_cpu

if TYPE_CHECKING:
    import vllm

ALL = ("weights", "kv_cache")


class LocalVLLM:
    """vLLM's `LLM`, undisturbing, and awake when it has to be.

    Args:
        options: `mode`, `adapters`, `mask` and `chosen` of `setup.engine_arguments`.

    Attributes:
        room: tokens of the longest request.
        on_cpu: vLLM's platform is the CPU.
    """

    def __init__(self, model: nn.Module, settings: VLLMSettings, **options: Any):
        self._llm: vllm.LLM | None = _start(model, settings, **options)
        from vllm.platforms import current_platform

        self.on_cpu = current_platform.is_cpu()
        self.room = self._llm.model_config.max_model_len
        self._asleep: set[str] = set()
        self._adapter: tempfile.TemporaryDirectory[str] | None = None  # its files; vLLM may read them again
        if self.on_cpu:
            self._warm_up()

    def sample(self, prompts: list[list[int]], asked: list[vllm.SamplingParams]) -> list[vllm.RequestOutput]:
        """What vLLM makes of each prompt, in their order, with the adapter where there is one."""
        self.wake(ALL)
        if not prompts:
            return []
        with undisturbed():
            inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
            return self._open().generate(inputs, asked, use_tqdm=False, lora_request=self._request())

    def stream(self, prompt: list[int], asked: vllm.SamplingParams, heard: Callable[[int], None]) -> vllm.RequestOutput:
        """What `sample` makes of one prompt; `heard` is told each id as it comes."""
        from vllm.sampling_params import RequestOutputKind

        self.wake(ALL)
        engine, name, told = self._open().llm_engine, "stream", 0
        asked.output_kind = RequestOutputKind.CUMULATIVE
        with undisturbed():
            engine.add_request(name, {"prompt_token_ids": list(prompt)}, asked, lora_request=self._request())
            try:
                while True:
                    for output in engine.step():
                        ids = output.outputs[0].token_ids
                        for token in ids[told:]:
                            heard(int(token))
                        told = len(ids)
                        if output.finished:
                            return output
            except BaseException:
                engine.abort_request([name])
                raise

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

    def load_adapter(self, config: dict[str, Any], named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Puts an adapter, in PEFT's file format, in the place of the last one; all samples are by it from then on.

        Raises:
            RolloutError: vLLM refuses it; there is none then.
        """
        self.wake(ALL)
        self.drop_adapter()
        self._adapter = tempfile.TemporaryDirectory(prefix="align-adapter-")
        folder = Path(self._adapter.name)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors}
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            with undisturbed():
                self._open().llm_engine.add_lora(self._request(load_inplace=True))
                self._forget()
        except Exception as error:
            self.drop_adapter()
            raise RolloutError(f"vLLM refused the adapter: {error}") from error

    def drop_adapter(self) -> None:
        """Samples are by the base alone."""
        if self._adapter is not None:
            self._adapter.cleanup()
            self._adapter = None

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
        self.drop_adapter()
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

    def _request(self, *, load_inplace: bool = False) -> Any:
        """The adapter as vLLM names it: always the same id, so that the last one gives way.

        Args:
            load_inplace: read the files although vLLM holds an adapter of that id; without it the old one stays.
        """
        if self._adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("policy", 1, self._adapter.name, load_inplace=load_inplace)

    def _warm_up(self) -> None:
        """Pays for the sampler's compilation, and asks for AMX.

        Else, in bfloat16, the first attention of a process would be an illegal instruction when it reads at most 4
        tokens (vLLM 0.32).
        """
        from vllm import SamplingParams

        if hasattr(torch.cpu, "_init_amx"):
            torch.cpu._init_amx()
        params = SamplingParams(max_tokens=2, top_p=0.9, seed=0, logprobs=0, ignore_eos=True, detokenize=False)
        self.sample([[0] * max(1, min(32, self.room - 2))], [params])
        self._forget()

    def _forget(self) -> None:
        """Empties the prefix cache, whose keys and values older weights made."""
        if not self._open().reset_prefix_cache():
            raise RolloutError("vLLM could not empty its prefix cache: requests are still running")

    def _open(self) -> vllm.LLM:
        if self._llm is None:
            raise RolloutError("this engine was closed")
        return self._llm


def why_not_beside(model: nn.Module) -> str | None:
    """Why vLLM cannot sample for this model in the process that trains it, or None.

    Where vLLM has no class of its own for an architecture it runs transformers' (its "Transformers modeling backend"),
    and changes that class for the whole process: `support_torch_compile` gives it another `__init__` and `__call__`.

    Raises:
        RolloutError: vLLM cannot be imported.
    """
    base = base_of(model)
    if (architecture := architecture_of(base)) is None:
        return None  # vLLM says what it takes
    with undisturbed():
        found = _import_vllm().ModelRegistry.models.get(architecture)
    if found is not None and not getattr(found, "class_name", "").startswith("Transformers"):
        return None
    kind = base.config.model_type
    return f"vLLM has no class of its own for {kind} models and would change transformers', which the trainer runs"


def _import_vllm() -> Any:
    """To be called `undisturbed`.

    Raises:
        RolloutError: it cannot be imported.
    """
    quiet()
    warnings.simplefilter("ignore")  # of vLLM's own code while it is read
    try:
        import vllm
        import vllm.platforms
    except ImportError as error:
        raise RolloutError(
            f"vLLM cannot be imported ({error}): {how_to_install('vllm')}, or set ppo.rollout.engine: hf"
        ) from error
    return vllm


def _start(model: nn.Module, settings: VLLMSettings, **options: Any) -> vllm.LLM:
    """A vLLM engine with random weights, in this process, alone on this rank's device.

    Args:
        options: `mode`, `adapters`, `mask` and `chosen` of `engine_arguments`.

    Raises:
        RolloutError: vLLM is not installed, would change the trainer's own model, or refuses the settings.
    """
    if why := why_not_beside(model):
        raise RolloutError(f"{why}: set ppo.rollout.engine: vllm_server or hf")
    variables = {"VLLM_CPU_KVCACHE_SPACE": None} if settings.kv_cache_gib is not None else {}
    if options["mask"]:
        variables["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    with undisturbed(**variables), tempfile.TemporaryDirectory(prefix="align-vllm-") as folder:
        vllm = _import_vllm()
        on_cpu = vllm.platforms.current_platform.is_cpu()
        if on_cpu and options["mask"]:
            raise RolloutError(
                "vLLM on a CPU does not record which ids could be drawn (policy_support: nucleus needs them): set "
                "ppo.rollout.engine: hf"
            )
        write_config(model, Path(folder))
        arguments = engine_arguments(Path(folder), model, settings, on_cpu=on_cpu, **options)
        try:
            with PrivateWorld.joined():
                return vllm.LLM(**arguments, distributed_executor_backend=_executor())
        except Exception as error:
            said = _last_line(error)
            raise RolloutError(f"vLLM could not start: {said}{memory_hint(said)}") from error


def _executor() -> type:
    """vLLM's executor of one worker in this process, on the device that this process already uses.

    vLLM's own takes device 0 in every process, and its `external_launcher` the rank's device but also the trainer's
    distributed group.
    """
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    class LocalExecutor(UniProcExecutor):
        """One worker of a world of its own, on the current device."""

        def _distributed_args(self) -> tuple[str, int, int]:
            """(where its group meets: a private file; its rank; its device)."""
            method, rank, local_rank = super()._distributed_args()
            return method, rank, torch.cuda.current_device() if torch.cuda.is_available() else local_rank

    return LocalExecutor


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:600] or 'no message'}"
