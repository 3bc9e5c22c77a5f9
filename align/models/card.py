"""The model card of a folder: what the model in it is and how stock code uses it, found by the folder's own files; what
it was made from and how well it does is told by whoever made it.

A card is written for every folder that leaves a stage, a merge or a conversion (`reward.export` writes that of an
exported reward model). The folder's machine and its user are none of a card's business: no absolute path stands in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.models.critic import Critic
from align.runtime.card import CARD, PATH, inherited, write_card
from reward import adapter, card
from reward.folder import local_folder, read_json
from reward.loading import hub_file, saved_tokenizer
from reward.model import RewardModel

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

CHAT = """\
```python
from transformers import {classes}

{path}  # this folder, or its id on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = {load}
messages = [{{"role": "user", "content": "How far is the moon?"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens=64{ends})
print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
TEXT = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

{path}  # this folder, or its id on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
inputs = tokenizer("The moon is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))
```"""
WHOLE = ("AutoModelForCausalLM, AutoTokenizer", "AutoModelForCausalLM.from_pretrained(path)", "")
ADAPTED = (
    "AutoTokenizer, GenerationConfig\nfrom peft import AutoPeftModelForCausalLM",
    "AutoPeftModelForCausalLM.from_pretrained(path)",
    ", generation_config=GenerationConfig.from_pretrained(path)",
)
OWN = """\
{why} It loads with the code that trained it:

```python
from {module} import {name}

{path}  # this folder, or its id on the hub
model = {name}.from_pretrained(path)
```"""
QUANTISED = "It was trained and measured on a base in 4 bits (`base_quantization.json`)."


@dataclass(frozen=True, slots=True)
class Described:
    """What a folder's own files say of the model in it."""

    about: str
    use: dict[str, str]
    metadata: dict[str, Any] = field(default_factory=dict)


def describe(folder: Path, *, speaks: bool = True) -> Described:
    """What the model in `folder` is, and how stock code uses it.

    Args:
        speaks: whether it was trained on conversations; else its example is a text that it goes on with.
    """
    config = read_json(folder / adapter.CONFIG) if adapter.is_saved_at(folder) else None
    base = config and config.get("base_model_name_or_path")
    metadata: dict[str, Any] = {"library_name": "transformers" if config is None else "peft"}
    if config is not None:
        metadata |= {"base_model": hub_id(base), "base_model_relation": "adapter", "tags": ["rlhf", "lora"]}
    beside = "" if config is None else f" It is an adapter on `{hub_id(base) or Path(str(base)).name}`."
    if (folder / adapter.QUANTIZATION).is_file():
        beside += f" {QUANTISED}"
    if RewardModel.is_saved_at(folder):
        metadata |= {"pipeline_tag": "text-classification", "tags": [*card.TAGS, *metadata.get("tags", ())[1:]]}
        return Described(card.ABOUT + beside, _scores(folder, whole=config is None), metadata)
    if Critic.is_saved_at(folder):
        why = "Its head reads a value at every token, which no class of transformers does; theirs refuse the folder."
        use = OWN.format(why=why, module="align", name="Critic", path=PATH)
        return Described(f"A critic of PPO: the value of what has been written so far.{beside}", {"Use": use}, metadata)
    classes, load, ends = WHOLE if config is None else ADAPTED
    use = (CHAT if speaks else TEXT).format(classes=classes, load=load, ends=ends, path=PATH)
    metadata = {"pipeline_tag": "text-generation", "tags": ["rlhf"], **metadata}
    return Described(f"A language model.{beside}", {"Use": use}, metadata)


def _scores(folder: Path, *, whole: bool) -> dict[str, str]:
    settings = read_json(folder / RewardModel.settings_file)
    config = read_json(folder / "config.json") if whole else read_json(folder / adapter.CONFIG)
    stock = config.get("task_type") == "SEQ_CLS" and settings.get("pooling") == "end_token"
    if whole:
        stock = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())
    if not stock:
        why = f"It reads its score by {settings.get('pooling')} pooling, which no class of transformers does; theirs"
        why += " refuse the folder, and `align export-reward` has no classifier to make of it."
        return {"Use": OWN.format(why=why, module="reward.model", name="RewardModel", path=PATH)}
    return card.classifier_sections(
        saved_tokenizer(folder),
        shift=float(settings["shift"]),
        scale=float(settings.get("scale", 1.0)),
        pad_id=config.get("pad_token_id"),
        dtype=str(config.get("dtype", "float32")),
        whole=whole,
    )


def write(
    folder: Path,
    title: str,
    made: str,
    *,
    sections: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    speaks: bool = True,
) -> None:
    """Write the card of the model in `folder`.

    Args:
        made: how it was made, a sentence.
        sections: about its making, by heading.
        metadata: wins over what the folder says itself; its tags are added.
        speaks: see `describe`.
    """
    found, more = describe(folder, speaks=speaks), dict(metadata or {})
    tags = [*found.metadata.get("tags", ()), *more.pop("tags", ())]
    texts, known = found.use | dict(sections or {}), found.metadata | more | {"tags": tags}
    write_card(folder, title, f"{found.about} {made}", texts, known)


def write_made_from(folder: Path, source: str | Path, title: str, made: str, **hub_options: Any) -> None:
    """`write` for a model that was made from the one at `source`, whose card says how that was trained."""
    metadata, sections = inherited(hub_file(source, CARD, **hub_options), *card.TRAINED)
    metadata.setdefault("base_model", hub_id(str(source)))
    write(folder, title, made, sections=sections, metadata=metadata)


def hub_id(name: Any) -> str | None:
    """`name` where it is the id of a model on the hub, None for a folder or nothing."""
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name):
        return None
    try:
        return name if local_folder(name) is None else None
    except Exception:  # a folder that is gone
        return None
