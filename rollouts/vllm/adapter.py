"""A LoRA adapter on its way into vLLM, which reads it from files in PEFT's format."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest


class Adapter:
    """The files of one adapter in a private folder, kept while vLLM may read them again.

    Args:
        config: the content of `adapter_config.json`.
        named_tensors: what `adapter_model.safetensors` holds.
    """

    def __init__(self, config: dict[str, Any], named_tensors: Iterable[tuple[str, Tensor]]):
        self._folder = tempfile.TemporaryDirectory(prefix="align-adapter-")
        folder = Path(self._folder.name)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors}
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")

    def request(self, *, load_inplace: bool = False) -> LoRARequest:
        """The adapter as vLLM names it: always the same id, so that the last one gives way.

        Args:
            load_inplace: read the files although vLLM holds an adapter of that id; without it the old one stays.
        """
        from vllm.lora.request import LoRARequest

        return LoRARequest("policy", 1, self._folder.name, load_inplace=load_inplace)

    def close(self) -> None:
        """Deletes the files."""
        self._folder.cleanup()
