"""What would only be tried at the end is tried at the start: a draft of everything that a stage will leave.

Every model is dressed and written by the very function that writes it at the end, with one element of each tensor in
place of the whole (into a temporary folder of the system, so that nothing comes and goes where the run is watched), and
a file is written, renamed and removed in every folder that the stage will write to. So a configuration that
transformers refuses, a chat template that cannot be written, tensors that share memory, a folder that is a file or not
writable, and a full disk are met before the first step, not after the last. What the dressing can mend it mends in the
model itself, so that checkpoints are written with it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from align.models.save import dress, save_model
from align.runs.errors import OutputError
from align.runtime import files
from align.runtime.errors import AlignError, StorageError
from align.runtime.files import prove_folder
from align.runtime.peft_model import is_peft
from align.runtime.ranks import agree, is_main
from align.stages.common import JUDGED, LOG, MADE_BY_STAGES
from align.trainers import sharding

GROWING = ("checkpoints", "best", "rounds", JUDGED)  # folders in which others take their names
WHOLE = ("head.", "pooler.")  # of a reward model or critic, whose settings name the head's size


def prove_outputs(stage: str, out_dir: Path, tokenizer: Any, models: Mapping[str, nn.Module]) -> None:
    """Write a draft of each of a stage's outputs; every rank calls it, the first one writes.

    Args:
        models: what will be saved, by its folder below `out_dir` (`model`, `critic`, `best/model`).

    Raises:
        StorageError: something cannot be written where it belongs.
        OutputError: a model that cannot be saved as it is.
    """
    for module in models.values():
        dress(module, tokenizer)  # on all ranks: their configurations stay equal

    def write() -> None:
        _check_places(out_dir)
        for name, module in models.items():
            _write_draft(f"{stage}: {out_dir / name}", module, tokenizer)

    told = f"{out_dir}: the first rank cannot write (see its message)"
    agree(write, lambda _: StorageError(told), mine=is_main())


def _check_places(out_dir: Path) -> None:
    prove_folder(out_dir)
    for name in MADE_BY_STAGES:
        path = out_dir / name
        if path.exists() and path.is_dir() == bool(path.suffix):
            raise StorageError(f"{path} is a {'folder' if path.suffix else 'file'}: move it away, a stage writes there")
        if path.is_file():
            with files.storage_errors(path, "append to"), open(path, "ab"):
                pass
        elif path.is_dir() and name in GROWING:
            prove_folder(path)


def _write_draft(what: str, module: nn.Module, tokenizer: Any) -> None:
    try:
        with TemporaryDirectory() as folder, files.storage_errors(folder):
            _write(module, tokenizer, Path(folder))
    except StorageError as error:
        LOG.debug("%s was not tried: the system's temporary folder cannot be written (%s)", what, error)
    except AlignError:
        raise
    except Exception as error:  # of transformers, safetensors, tokenizers, jinja
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OutputError(
            f"{what} could not be written after training ({type(error).__name__}: {words}); mend the model or the "
            "tokenizer that the stage starts from"
        ) from error


def _write(module: nn.Module, tokenizer: Any, folder: Path) -> None:
    if not sharding.is_sharded(module):
        save_model(module, tokenizer, folder, _thin(module))
        return
    module.config.save_pretrained(folder)  # its tensors are gathered by all ranks together
    tokenizer.save_pretrained(folder)


def _thin(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with one element of each tensor: views, so that what shares memory is seen to. Of weights that
    transformers rearranges when it saves them, the first alone."""
    state = module.state_dict()
    thin = {
        name: tensor if name.startswith(WHOLE) or not isinstance(tensor, Tensor) else tensor[(slice(1),) * tensor.dim()]
        for name, tensor in state.items()
    }
    body = getattr(module, "backbone", module)
    if not is_peft(body) and getattr(body, "_weight_conversions", None):
        first = next(name for name in thin if not name.startswith(WHOLE))
        thin = {name: value for name, value in thin.items() if name == first or name.startswith(WHOLE)}
    return thin
