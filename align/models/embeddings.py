"""A pretrained model is given ChatML's tokens (`model.tokenizer.add_chatml`), once, in a folder of its own.

The folder is the model of `model.path` with embeddings for the new tokens, and what every stage of the run starts from
in its place: adapters stand on it, so transformers, PEFT and vLLM load them as they load any other.

New rows begin as the mean of the old ones (Hewitt 2021), so that a new token takes probability from no word in
particular; an adapter trains them too (`align.models.adapters`), whose weights are otherwise frozen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from align.models.save import save_model
from align.models.speech import CONTROL_TOKENS
from align.models.tokenizer import load_tokenizer
from align.recipe.model_section import ModelSection
from align.runtime import files
from align.runtime.ranks import barrier, is_main
from data_formats.chat_format import remembered
from reward.folder import local_folder, read_json
from reward.loading import load_pretrained, saved_tokenizer

SOURCE = "made_from.json"
MULTIPLE = 64  # of the embeddings: what matrix products like


def with_chatml(model: ModelSection, folder: Path) -> str:
    """`model.path`, or, where its tokenizer lacks tokens of ChatML, `folder`, where the model is written with them.

    Every rank calls it; the first one writes. A folder that was made from this model is taken as it is.

    Raises:
        TokenizerError, ModelFileError, StorageError: it cannot be read, or written.
    """
    source = {"path": str((local_folder(model.path) or Path(model.path)).resolve()), "revision": model.revision}
    if (folder / SOURCE).is_file() and read_json(folder / SOURCE) == source:
        return str(folder)
    options = {"trust_remote_code": model.trust_remote_code, "revision": model.revision}
    if saved_tokenizer(model.path, **options).get_added_vocab().keys() >= {*CONTROL_TOKENS}:
        return model.path
    if is_main():
        from transformers import AutoModelForCausalLM

        tokenizer = load_tokenizer(model.path, section=model.tokenizer, **options)
        module = load_pretrained(AutoModelForCausalLM, model.path, **options)
        give_rows(module, remembered(tokenizer)["added"])
        with files.atomic_dir(folder) as draft:
            save_model(module, tokenizer, draft, still_new=True)
            files.write_json(draft / SOURCE, source)
    barrier()
    return str(folder)


@torch.no_grad()
def give_rows(module: Any, added: list[int]) -> None:
    """Embeddings, and rows of the head, for the tokens `added`: the mean of those of the tokens before them."""
    known = min(added)
    if max(added) >= module.get_input_embeddings().weight.shape[0]:
        module.resize_token_embeddings(max(added) + 1, pad_to_multiple_of=MULTIPLE, mean_resizing=False)
    ends: list[nn.Module | None] = [module.get_input_embeddings(), module.get_output_embeddings()]
    for weight in {id(end.weight): end.weight for end in ends if end is not None}.values():
        weight[known:] = weight[:known].mean(0, dtype=torch.float32).to(weight.dtype)
    head_bias = getattr(ends[1], "bias", None)
    if head_bias is not None:
        head_bias[known:] = head_bias[:known].mean()
