"""Which of PPO's models can share one backbone, and why others cannot.

Two chains do. Everything is LoRA on one base: the reference is a frozen copy of the policy's adapter. Or the policy
starts from a whole model (sft trained all weights, or was merged) and the reward model's adapter was trained on that
very model: the policy gets a new adapter, and the base alone is the reference. In any other mixture some role would
have to compute with another base than the one it was trained on, which is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.models import adapters
from align.models.role_adapters import RoleError
from align.recipe.model_section import ModelSection
from reward import adapter
from reward.folder import local_folder, read_json
from reward.loading import hub_file, saved_tokenizer
from reward.model import RewardModel

SAVED_4BIT = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """What is loaded for a shared backbone.

    Attributes:
        base: folder or hub id of the base, and its `revision`.
        quantization: the base's `quantization_config`, None for plain weights.
        policy: the adapter it starts from; None: a new one, and the base alone is the reference.
        rewards: the adapters of the reward models, by path.
        critic: the adapter it starts from; None: the policy's.
        with_critic: whether there is one.
    """

    base: str
    revision: str | None
    quantization: Any
    policy: str | None
    rewards: tuple[str, ...]
    critic: str | None
    with_critic: bool = True


@dataclass(frozen=True, slots=True)
class _Stand:
    """What a model computes with: `base` is the model itself where it has no adapter."""

    path: str
    base: str
    revision: str | None
    quantization: Any
    adapted: bool


def plan_sharing(
    policy: str, rewards: Sequence[str], critic: str | None, model: ModelSection, vocabulary: Mapping[str, int]
) -> SharedPlan:
    """How the models at these paths share one backbone.

    Args:
        policy, critic: what they start from; no critic: None.
        rewards: the reward models, maybe none.
        model: of the recipe; says how a base is loaded that no adapter stands on yet.
        vocabulary: of the policy's tokenizer.

    Raises:
        RoleError: they cannot; says which one and why.
        MissingFileError, ModelFileError: nothing there, or torn.
    """
    stand = _stand(policy, model)
    for reward in dict.fromkeys(rewards):
        if not RewardModel.is_saved_at(reward):
            raise RoleError(f"the reward model at {reward} is a classifier, not an adapter with a head of this project")
        _same_base("reward model", _stand(reward, model), stand)
        if saved_tokenizer(reward).get_vocab() != dict(vocabulary):
            raise RoleError(f"the reward model at {reward} has a tokenizer of its own, which is not the policy's")
    start = None if critic is None or _same_path(critic, policy) else critic
    if start is not None:
        _same_base("critic", _stand(start, model), stand)
    rows = _embeddings(stand.base)
    if rows is not None and rows < len(vocabulary):
        raise RoleError(f"the base {stand.base} has {rows} token embeddings, the policy's tokenizer {len(vocabulary)}")
    return SharedPlan(
        stand.base,
        stand.revision,
        stand.quantization,
        policy if stand.adapted else None,
        tuple(dict.fromkeys(rewards)),
        start,
        critic is not None,
    )


def _stand(path: str, model: ModelSection) -> _Stand:
    if adapter.is_saved_at(path):
        config = adapter.saved_config(path)
        settings = read_json(file) if (file := hub_file(path, RewardModel.settings_file)) is not None else None
        quantization = adapter.saved_quantization(path, settings)
        return _Stand(path, config["base_model_name_or_path"], config.get("revision"), quantization, True)
    revision = model.revision if path == model.path else None
    quantization = adapters.quantization(model) if model.adapter == "qlora" else None
    return _Stand(path, path, revision, quantization, False)


def _same_base(role: str, other: _Stand, policy: _Stand) -> None:
    if not other.adapted:
        raise RoleError(f"the {role} at {other.path} is a whole model, and the policy an adapter: train both alike")
    if not _same_model(other, policy):
        rows = (_embeddings(other.base), _embeddings(policy.base))
        sizes = f", with vocabularies of {rows[0]} and {rows[1]}" if None not in rows and rows[0] != rows[1] else ""
        raise RoleError(
            f"the {role} at {other.path} is an adapter on {other.base}, while the policy at {policy.path} "
            f"{'stands on' if policy.adapted else 'is the whole model'} {policy.base}{sizes}"
        )
    if (told := _kind(other.quantization)) != (own := _kind(policy.quantization)):
        raise RoleError(f"the {role} at {other.path} was trained on a base in {told}, the policy's is in {own}")


def _kind(quantization: Any) -> str:
    if quantization is None:
        return "full precision"
    values = {name: str(getattr(quantization, name)).removeprefix("torch.") for name in SAVED_4BIT}
    return ", ".join(f"{name.removeprefix('bnb_4bit_')}={value}" for name, value in values.items())


def _same_path(one: str, other: str) -> bool:
    folders = (local_folder(one), local_folder(other))
    return one == other or (None not in folders and folders[0].resolve() == folders[1].resolve())


def _same_model(one: _Stand, other: _Stand) -> bool:
    """By path, or, for copies, by content."""
    if _same_path(one.base, other.base):
        return local_folder(one.base) is not None or one.revision == other.revision
    files, others = _weight_files(one.base), _weight_files(other.base)
    if not files or [file.stat().st_size for file in files] != [file.stat().st_size for file in others]:
        return False
    return _content(files) == _content(others)


def _weight_files(path: str) -> list[Path]:
    folder = local_folder(path)
    return [] if folder is None else sorted(folder.glob("model*.safetensors"))


def _content(files: Sequence[Path]) -> list[str]:
    found = []
    for file in files:
        with file.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return found


def _embeddings(path: str) -> int | None:
    file = hub_file(path, "config.json")
    return None if file is None else read_json(file).get("vocab_size")
