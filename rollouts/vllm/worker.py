"""What vLLM's workers learn from us (`--worker-extension-cls`): to pull weights from files beside them, those that lie
there or those that came over HTTP (`rollouts.vllm.receive`).

vLLM mixes the class into its own worker and calls its methods by name (/collective_rpc). A worker answers with a
dictionary instead of raising: an exception in a worker may end the engine, and its text does not reach the caller.
`undefined` in the answer says that weights were being changed when it went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rollouts.vllm.low_rank import changed, is_change
from rollouts.vllm.weights import abandon_reload, names_digest, repack_for_cpu


class WeightPuller:
    """Methods for vLLM's worker; all that takes place in it is under the caller's order."""

    def align_describe(self) -> dict[str, Any]:
        """What this engine is, as far as a trainer must know it."""
        config = self.vllm_config.model_config  # type: ignore[attr-defined]
        return {
            "architectures": list(config.hf_config.architectures or ()),
            "vocab_size": int(config.get_vocab_size()),
            "hidden_size": int(config.get_hidden_size()),
            "layers": int(config.hf_text_config.num_hidden_layers),
            "dtype": str(config.dtype).removeprefix("torch."),
            "max_model_len": int(config.max_model_len),
            "logprobs": str(config.logprobs_mode),
            "max_num_seqs": int(self.vllm_config.scheduler_config.max_num_seqs),  # type: ignore[attr-defined]
            "device": self.device.type,  # type: ignore[attr-defined]
        }

    def align_sees(self, path: str, word: str) -> bool:
        """Whether the file at `path` is here and holds `word`."""
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read(len(word) + 1) == word
        except OSError:
            return False

    def align_pull(self, folder: str, files: list[list[Any]], digest: str) -> dict[str, Any]:
        """Loads the weights that lie in `folder`.

        Args:
            files: name and size in bytes of each file.
            digest: `names_digest` of what they must hold together.
        """
        try:
            paths = whole_files(Path(folder), files, digest)
        except (OSError, ValueError) as error:
            return {"problem": str(error), "undefined": False}
        try:
            missing = self._align_load(tensors(paths, self.device))  # type: ignore[attr-defined]
        except Exception as error:  # whatever vLLM's loaders raise
            abandon_reload(self.model_runner.get_model(), self.vllm_config)  # type: ignore[attr-defined]
            return {"problem": f"{type(error).__name__}: {error}", "undefined": True}
        if missing:
            return {"problem": f"weight '{missing[0]}' of the engine's model was not in the push", "undefined": True}
        return {"problem": None, "undefined": False}

    def _align_load(self, stream: Iterator[tuple[str, Tensor]]) -> list[str]:
        """Reloads; returns the parameters that nothing came for, of which vLLM itself only warns."""
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        load, loaded = model.load_weights, set()

        def remember(weights: Iterator[tuple[str, Tensor]]) -> Any:
            got = load(weights)
            loaded.update(got if got is not None else (name for name, _ in model.named_parameters()))
            return got

        names = [name for name, _ in model.named_parameters()]
        model.load_weights = remember
        try:
            self.reload_weights(weights_iterator=stream)  # type: ignore[attr-defined]
        finally:
            del model.load_weights
        if self.device.type == "cpu":  # type: ignore[attr-defined]
            repack_for_cpu(model)
        return sorted(set(names) - loaded)


def whole_files(folder: Path, files: list[list[Any]], digest: str) -> list[Path]:
    """The paths, when all are there, as long as they were written, and hold the names, shapes and types announced.

    Raises:
        OSError: one cannot be read.
        ValueError: one is cut short or broken, or the names are others.
    """
    from safetensors import SafetensorError, safe_open

    entries, paths = [], []
    for name, size in files:
        path = folder / Path(name).name
        if (found := path.stat().st_size) != size:
            raise ValueError(f"{path} has {found} bytes, {size} were written: it was cut short")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dictionary
                    part = file.get_slice(key)
                    entries.append((key, tuple(part.get_shape()), part.get_dtype()))
        except SafetensorError as error:
            raise ValueError(f"{path} is broken ({error})") from None
        paths.append(path)
    if names_digest(entries) != digest:
        raise ValueError(f"the files in {folder} do not hold the tensors that were announced")
    return paths


def tensors(paths: list[Path], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """All weights, one at a time, with their changes where there are any, which are added on `device`."""
    added = dict(_read(paths, is_change))
    for name, tensor in _read(paths, lambda name: not is_change(name)):
        yield name, changed(name, tensor, added, device)


def _read(paths: list[Path], wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in paths:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                if wanted(key):
                    yield key, file.get_tensor(key)
