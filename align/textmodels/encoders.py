"""Texts as vectors by a transformer: a sentence-transformers folder as its own files say, or a causal language model.

Of a sentence-transformers folder the chain of `modules.json` is done here: the transformer, pooled as `1_Pooling` says
(the first token, the last one, the mean, the largest, the mean with weights that grow by place), with or without a
normalisation; a module of another kind (Dense, images, sparse words) is refused. Its length limit, its lower case and
its default prompt are kept. Of a causal language model the last hidden states of all tokens are averaged. Either way
the vectors have length 1 at the end, as `embeddings.Embedder` promises.

Texts are taken by length, so that little is padded; the vectors come back in the given order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.runtime.errors import AlignError
from align.runtime.memory import memory_errors
from align.runtime.padding import pad_right
from align.textmodels.vectors import unit_rows
from reward.folder import local_folder, read_json

MODULES = "modules.json"  # of a sentence-transformers folder
LONGEST = 512  # tokens of a text, where the folder has no limit of its own
BATCH = 32
POOLINGS = {  # keys of older folders -> as newer ones call it
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class EncoderError(AlignError, ValueError):
    """A folder of sentence-transformers that asks for what is not done here."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts are given to the transformer and what is made of its hidden states."""

    pooling: str = "mean"
    longest: int = LONGEST
    prompt: str = ""
    lower: bool = False


class Encoder:
    """Vectors of texts by a transformer.

    Args:
        model: gives `last_hidden_state` (B, T, D); it stays on its device.
        tokenizer: the model's.
        name: what the vectors are called in files.
        reading: see `Reading`.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, reading: Reading):
        self.name, self._model, self._tokenizer, self._reading = name, model, tokenizer, reading

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 (N, D), every row of length 1; a longer text is cut.

        Raises:
            OutOfMemoryError: not even a batch of texts fits.
        """
        import torch

        given = [self._reading.prompt + text for text in texts]
        given = [text.lower() for text in given] if self._reading.lower else given
        encoded = self._tokenizer(given, truncation=True, max_length=self._reading.longest)["input_ids"]
        nothing = self._tokenizer.pad_token_id or 0
        rows = [ids or [nothing] for ids in encoded]  # an empty text of a tokenizer without marks
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        device = next(self._model.parameters()).device
        found: Any = None
        with torch.inference_mode(), memory_errors(f"embedding by {self.name}"):
            for start in range(0, len(order), BATCH):
                taken = order[start : start + BATCH]
                ids_BT, mask_BT = (one.to(device) for one in pad_right([rows[at] for at in taken], nothing))
                hidden_BTD = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
                vectors = pooled(hidden_BTD.float(), mask_BT, self._reading.pooling).cpu().numpy()
                if found is None:
                    found = np.zeros((len(rows), vectors.shape[1]), np.float32)
                found[taken] = vectors
        return unit_rows(found) if found is not None else np.zeros((0, 1), np.float32)


def pooled(hidden_BTD: Any, mask_BT: Any, how: str) -> Any:
    """One vector (B, D) a row of hidden states, over the tokens whose mask is 1; padding is on the right."""
    import torch

    mask_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
    if how == "cls":
        return hidden_BTD[:, 0]
    if how == "lasttoken":
        return hidden_BTD[torch.arange(len(mask_BT)), mask_BT.sum(1) - 1]
    if how == "max":
        return hidden_BTD.masked_fill(mask_BT1 == 0, -torch.inf).amax(1)
    if how == "weightedmean":
        places = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device).view(1, -1, 1)
        mask_BT1 = mask_BT1 * places
    return (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)


def load_encoder(path: str | Path) -> Encoder:
    """The encoder of a folder or hub id, on an accelerator where there is one.

    Raises:
        MissingFileError: neither a folder nor a model that the hub gives.
        ModelFileError: torn files.
        EncoderError: a sentence-transformers folder with modules that are not known here.
    """
    import torch

    from align.models.load import load_causal_lm
    from align.recipe.model_section import ModelSection
    from reward.loading import hub_file, load_pretrained, saved_tokenizer

    modules = hub_file(path, MODULES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if modules is None:
        tokenizer = saved_tokenizer(path)
        model = load_causal_lm(path, ModelSection(path=str(path)), use="merged").get_decoder()
        reading = Reading(longest=_room(tokenizer, model, LONGEST))
    else:
        from transformers import AutoModel

        folder = modules.parent
        place, how = read_modules(folder)
        tokenizer = saved_tokenizer(folder / place)
        model = load_pretrained(AutoModel, folder / place, optional=("pooler",))
        reading = _reading(folder, place, how, tokenizer, model)
    where = local_folder(path)
    return Encoder(model.eval().to(device), tokenizer, where.resolve().name if where else str(path), reading)


def read_modules(folder: Path) -> tuple[str, str]:
    """Where below a sentence-transformers folder the transformer lies ("" is the folder), and how it is pooled.

    Raises:
        EncoderError: another chain of modules than transformer, pooling and normalisation.
        ModelFileError: a file is missing or torn.
    """
    chain = _list(folder / MODULES)
    kinds = [str(one.get("type", "")).rpartition(".")[2] for one in chain]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        raise EncoderError(
            f"{folder / MODULES} is a chain of {', '.join(kinds) or 'nothing'}; known here is Transformer, Pooling and "
            "Normalize: take another model"
        )
    config = read_json(folder / chain[1]["path"] / "config.json")
    asked = [name for key, name in POOLINGS.items() if config.get(key)]
    named = config.get("pooling_mode")
    how = [named] if isinstance(named, str) else asked
    if len(how) != 1 or how[0] not in POOLINGS.values() or config.get("pooling_mode_mean_sqrt_len_tokens"):
        raise EncoderError(
            f"{folder / chain[1]['path'] / 'config.json'} pools by {' and '.join(map(str, how)) or 'something else'}; "
            f"known here is one of {', '.join(POOLINGS.values())}: take another model"
        )
    return chain[0].get("path", ""), how[0]


def _list(path: Path) -> list[dict[str, Any]]:
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} cannot be read ({error}): copy the folder again") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) and "path" in one for one in found):
        raise EncoderError(f"{path} is not a list of modules: copy the folder again")
    return found


def _reading(folder: Path, place: str, how: str, tokenizer: Any, model: Any) -> Reading:
    """What the folder says besides of how its texts are read."""
    settings = _optional(folder / place / "sentence_bert_config.json")
    prompts = _optional(folder / "config_sentence_transformers.json")
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name") or "", "")
    longest = settings.get("max_seq_length") or _room(tokenizer, model, LONGEST)
    return Reading(how, int(longest), prompt, bool(settings.get("do_lower_case")))


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _room(tokenizer: Any, model: Any, most: int) -> int:
    """Tokens that tokenizer and model take, `most` at most."""
    places = getattr(model.config, "max_position_embeddings", None) or most
    return int(min(tokenizer.model_max_length, places, most))
