"""What identifies a model's weights, wherever they lie: for the provenance of what was sampled from them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from reward import adapter
from reward.folder import local_folder, read_json
from reward.loading import hub_file

LENGTH = 16  # hexadecimal digits
KINDS = ("*.safetensors", "*.gguf")


def weights_version(path: str | Path) -> str:
    """The same for the same weights: a hash of the files that hold them, those below an adapter included; of a hub id
    the id and its commit. A folder that was copied or moved keeps its version.

    Raises:
        MissingFileError, ModelFileError: no such folder, or an adapter whose settings are damaged.
    """
    folder = local_folder(path)
    if folder is None:
        config = hub_file(path, "config.json") or hub_file(path, adapter.CONFIG)
        return f"{path}@{config.parent.name[:LENGTH]}" if config is not None else str(path)
    digest = hashlib.sha256()
    for file in sorted(file for kind in KINDS for file in folder.glob(kind)):
        with file.open("rb") as opened:
            digest.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    if adapter.is_saved_at(folder):
        base = str(read_json(folder / adapter.CONFIG).get("base_model_name_or_path"))
        digest.update(weights_version(base).encode())
    return digest.hexdigest()[:LENGTH]
