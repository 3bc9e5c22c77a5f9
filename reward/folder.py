"""Model folders: find what is torn before anything is loaded, and write without leaving a torn one behind.

The libraries below answer a truncated file with their own inner errors ("incomplete metadata, file not fully covered");
the checks here look at the few bytes that tell, and name the file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.runtime.errors import MissingFileError
from align.runtime.files import atomic_dir, is_temporary, storage_errors
from align.runtime.paths import typed_path
from reward.errors import ModelFileError

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
COUNTS, MOST = ("num_", "n_layer", "n_head"), 100_000  # layers, heads, labels, experts
JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    WEIGHTS_INDEX,
)


def local_folder(path: str | Path) -> Path | None:
    """The folder that `path` names, or None when it can only be a hub id.

    Raises:
        MissingFileError: `path` is clearly meant as a local path (absolute, `./`, `~`, more than one slash, inside an
            existing folder, or an existing file) but is no folder.
        PathError: no folder can have this path.
    """
    folder = typed_path(path)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise MissingFileError(f"{path} is a file; a model is a folder with a config.json, or a hub id")
    text = str(path)
    beside = len(folder.parts) > 1 and Path(folder.parts[0]).is_dir()  # runs/x where runs is a folder here
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or beside or "\\" in text:
        raise MissingFileError(f"model folder {path} does not exist: run the stage that makes it, or correct the path")
    return None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ModelFileError: missing, cut short, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing: the model folder is incomplete, save or copy it again") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path} is not valid JSON ({error}): it was cut short or damaged, copy it again"
        ) from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a JSON {type(value).__name__} where an object is expected")
    return value


def check_safetensors(path: Path) -> None:
    """Compare the file's length with what its header promises.

    Raises:
        ModelFileError: missing, cut short, or no safetensors file.
    """
    torn = f"{path} is cut short or damaged: save or copy it again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise ModelFileError(torn)
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing: the model folder is incomplete, save or copy it again") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(torn) from None
    if 8 + length + max(ends, default=0) != size:
        raise ModelFileError(f"{torn} ({size} bytes, its header promises {8 + length + max(ends, default=0)})")


def check_model_folder(folder: Path) -> None:
    """Check that `folder` holds a whole Hugging Face model in safetensors.

    Raises:
        ModelFileError: naming the file that is missing or torn.
    """
    _check_counts(folder / "config.json")
    for name in JSON_FILES:
        if (folder / name).exists():
            read_json(folder / name)
    if (folder / WEIGHTS_INDEX).exists():
        shards = read_json(folder / WEIGHTS_INDEX).get("weight_map", {})
        for name in sorted(set(shards.values())):
            check_safetensors(folder / name)
    elif (folder / WEIGHTS).exists():
        check_safetensors(folder / WEIGHTS)
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        why = f"only {pickled[0]}, a pickle, which is not loaded for safety; convert it" if pickled else "no weights"
        raise ModelFileError(f"{folder / WEIGHTS} is missing: the folder holds {why}")


def _check_counts(config: Path) -> None:
    """Raises ModelFileError for a count that no model has: what is counted is made one by one, for hours."""
    for key, value in read_json(config).items():
        if key.startswith(COUNTS) and isinstance(value, int) and value > MOST:
            raise ModelFileError(f"{config}: {key} is {value}, more than any model has: copy the file again")


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """Gives an empty temporary folder; what is written there is added to `folder` in one step when the block ends well.

    What `folder` holds besides stays, but for the weights of a model that is replaced. A `folder` that is itself a part
    of what waits for its name (a checkpoint) is written to as it is.

    Raises:
        StorageError: a full disk, no permission; what was in `folder` before is intact.
    """
    target = Path(folder).resolve()
    if any(is_temporary(part) for part in target.parts):
        with storage_errors(target):
            target.mkdir(parents=True, exist_ok=True)
            yield target
        return
    with atomic_dir(target) as draft:
        yield draft
        new = {path.name for path in draft.iterdir()}
        stale = {WEIGHTS, WEIGHTS_INDEX} if any(name.startswith("model") for name in new) else set()
        for path in target.iterdir() if target.is_dir() else ():  # a folder must not hold both one file and shards
            if path.name not in new | stale:
                _share(path, draft / path.name)


def _share(source: Path, target: Path) -> None:
    """`source` under the name `target` too; a copy where the file system has one name a file."""
    if source.is_dir():
        target.mkdir()
        for path in source.iterdir():
            _share(path, target / path.name)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
