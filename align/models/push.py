"""A model's folder to the hub: the model alone, its weights as safetensors, by huggingface_hub's `upload_folder`.

Checkpoints, optimizer states, logs and whatever else lies in the folder stay here. The token is the one that
huggingface_hub finds (`HF_TOKEN`, or of `hf auth login`), which no message repeats.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from align.models.card import hub_id
from align.recipe import STAGES
from align.recipe.lineage import TRAINED
from align.runtime.card import CARD, PATH
from align.runtime.errors import AlignError, MissingFileError, reason_of
from align.runtime.files import write_json
from align.runtime.secrets import hide
from reward import adapter
from reward.folder import check_model_folder, check_safetensors, read_json

logger = logging.getLogger(__name__)
WRITTEN = ("*.safetensors", "*.json", "*.jinja", "*.md", "*.txt", "*.model", "*.tiktoken")
STATE = ("trainer_state.json", "manifest.json", "figures.json", "data.json", "best.json")  # of a run, not of a model


class PushError(AlignError, RuntimeError):
    """The hub did not take a model."""


def model_of(place: str | Path, stage: str | None = None) -> Path:
    """The model's folder at `place`: that itself, or of a run the model of a stage that is finished, by default of its
    newest one.

    Raises:
        MissingFileError: there is none.
    """
    folder = Path(place).expanduser()
    if stage is None and _is_model(folder):
        return folder
    for name in (stage,) if stage is not None else reversed(STAGES):
        if _is_model(folder / name / "model") and not (folder / name / TRAINED).exists():
            return folder / name / "model"
    if stage is not None:
        raise MissingFileError(f"{place} holds no finished model of stage '{stage}'")
    raise MissingFileError(f"{place} is neither a model's folder nor a run with a finished model")


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", adapter.CONFIG))


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload the model in `folder` to the repository `repo` (made where there is none); returns its address.

    Args:
        private: of a repository that is made.

    Raises:
        ModelFileError: the folder holds no whole model in safetensors.
        PushError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi, get_token

    _check(folder)
    token = get_token()
    try:
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private or None, exist_ok=True)
        with TemporaryDirectory() as draft:
            _lay_out(folder, Path(draft), made.repo_id)
            api.upload_folder(repo_id=made.repo_id, folder_path=draft, commit_message="Model by align")
    except Exception as error:  # of the hub, the network, a name that is none: all mean that it is not there
        reason = hide(reason_of(error), [token] if token else [])
        login = "" if token else "; no token is set: run `hf auth login`, or set HF_TOKEN"
        raise PushError(f"{folder} was not pushed to {repo}: {reason}{login}") from None
    return str(made)


def _check(folder: Path) -> None:
    if not adapter.is_saved_at(folder):
        check_model_folder(folder)
        return
    check_safetensors(folder / adapter.WEIGHTS)
    base = adapter.saved_config(folder)["base_model_name_or_path"]
    if hub_id(base) is None:
        logger.warning(
            "%s is an adapter on a folder of this machine (%s), which nobody else has: push that too and correct "
            "base_model_name_or_path, or push what `align merge` makes of both",
            folder,
            base,
        )


def _lay_out(folder: Path, draft: Path, repo: str) -> None:
    """What is uploaded, with the repository's name in the card's programs."""
    for file in sorted({file for pattern in WRITTEN for file in folder.glob(pattern)}):
        if file.name == CARD:
            text = file.read_text(encoding="utf-8")
            (draft / CARD).write_text(text.replace(PATH, f'path = "{repo}"'), encoding="utf-8")
        elif file.name == adapter.CONFIG:
            write_json(draft / file.name, _without_path(read_json(file)))
        elif file.is_file() and file.name not in STATE:
            (draft / file.name).symlink_to(file.resolve())


def _without_path(config: dict[str, Any]) -> dict[str, Any]:
    """An adapter's configuration with the name alone of a base that lies on this machine."""
    base = config["base_model_name_or_path"]
    return config if hub_id(base) else config | {"base_model_name_or_path": Path(base).name}
