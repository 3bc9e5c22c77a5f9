"""A loaded tokenizer is made to speak: ChatML, as its own chat template has it, or without turns.

Without torch, so that `align check` can say before any model is loaded what a run would do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.recipe.model_section import TokenizerSection
from align.runtime.errors import AlignError
from data_formats.chat_format import (
    RAW_BOS,
    RAW_TEMPLATE,
    chat_format,
    described,
    end_of_turn,
    plain_template,
    remember,
    remembered,
    served_difference,
)
from data_formats.chatml import (
    CHAT_TEMPLATE,
    END_OF_TEXT,
    IM_END,
    IM_START,
    WITH_BOS,
    TemplateError,
    opening_token,
    render_template,
    template_difference,
)

logger = logging.getLogger(__name__)
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END)


class TokenizerError(AlignError, ValueError):
    """A tokenizer that cannot be trained, loaded or used as its model is to speak."""


def speak(
    tokenizer: Any,
    path: str | Path,
    section: TokenizerSection | None = None,
    *,
    ends: Callable[[], Sequence[int]],
    own_template: bool = False,
) -> list[str]:
    """Have the tokenizer carry how its model speaks, in place.

    Args:
        path: where it is from, for errors.
        section, own_template: as of `align.models.tokenizer.load_tokenizer`.
        ends: reads the ids at which the model's generation_config stops; asked for its own template alone.

    Returns:
        What that means for conversations, in words.

    Raises:
        TokenizerError: see `load_tokenizer`.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise TokenizerError(f"{path}: {type(tokenizer).__name__} is not a fast tokenizer (tokenizer.json)")
    said = remembered(tokenizer)
    trained = said.get("template") if said else None
    asked = section or TokenizerSection(template=trained or "chatml")
    if trained not in (None, asked.template):
        raise TokenizerError(
            f"{path} speaks as model.tokenizer.template: {trained} has it, and this recipe asks for {asked.template}: "
            f"set it to {trained}"
        )
    if asked.template == "chatml":
        return _speak_chatml(tokenizer, path, own_template=own_template, add=asked.add_chatml)
    if asked.template == "none":
        return _speak_raw(tokenizer, path, asked.end_token)
    return _speak_its_own(tokenizer, path, ends())


def _speak_chatml(tokenizer: Any, path: str | Path, *, own_template: bool, add: bool) -> list[str]:
    words = []
    if missing := [token for token in CONTROL_TOKENS if token not in tokenizer.get_added_vocab()]:
        names = ", ".join(missing)
        if not add:
            raise TokenizerError(
                f"{path}: the tokenizer lacks {names}, which ChatML is written with; set model.tokenizer.template=own "
                "to keep the model's own chat template, or model.tokenizer.add_chatml=true to add the tokens and train "
                "their embeddings"
            )
        _add(tokenizer, missing)
        words.append(f"{names} are added, and the model gets embeddings for them, which an adapter trains too")
    tokenizer.eos_token = IM_END
    if tokenizer.pad_token is None:
        tokenizer.pad_token = END_OF_TEXT
    bos = _begins_with_bos(tokenizer, path)
    if not own_template:
        tokenizer.chat_template = WITH_BOS if bos else CHAT_TEMPLATE
    _check_template(tokenizer, path, own=own_template, bos=bos)
    return [*words, f"ChatML: a reply ends with {IM_END}"]


def _add(tokenizer: Any, missing: Sequence[str]) -> None:
    """Add ChatML's tokens, and note which ids they have: those that an adapter trains too."""
    tokenizer.add_tokens(list(missing), special_tokens=True)
    remember(tokenizer, "chatml", added=[tokenizer.convert_tokens_to_ids(token) for token in missing])


def _speak_raw(tokenizer: Any, path: str | Path, end_token: str | None) -> list[str]:
    end = end_token or tokenizer.eos_token
    if end is None or end not in tokenizer.get_added_vocab():
        known = ", ".join(tokenizer.all_special_tokens) or "none"
        what = f"no token {end}" if end else "no end-of-sequence token"
        raise TokenizerError(
            f"{path}: the tokenizer has {what}; name one of its own in model.tokenizer.end_token: {known}"
        )
    head = _put_before(tokenizer)
    if head not in ([], [tokenizer.bos_token_id]):
        names = " ".join(tokenizer.convert_ids_to_tokens(head))
        raise TokenizerError(f"{path}: the tokenizer puts {names} before every text, which is more than a BOS token")
    tokenizer.eos_token = end
    tokenizer.chat_template = (RAW_BOS if head else "") + RAW_TEMPLATE
    _carry(tokenizer, "none", [end])
    return [f"no turns: a prompt is taken as it is, and its completion ends with {end}"]


def _speak_its_own(tokenizer: Any, path: str | Path, ends: Sequence[int]) -> list[str]:
    if not isinstance(tokenizer.chat_template, str) or not tokenizer.chat_template:
        raise TokenizerError(
            f"{path}: the tokenizer has no chat template of its own; set model.tokenizer.template to chatml or none"
        )
    tokenizer.chat_template = plain_template(tokenizer)
    known = tokenizer.get_added_vocab()
    named = [token for token, id_ in known.items() if id_ in ends]
    try:
        stops = [end_of_turn(tokenizer), *remembered(tokenizer).get("stops", []), tokenizer.eos_token, *named]
        _carry(tokenizer, "own", [token for token in dict.fromkeys(stops) if token in known])
        speaker = chat_format(tokenizer)
        words = described(speaker)
        difference = served_difference(speaker)
    except AlignError as error:
        raise TokenizerError(f"{path}: its own chat template cannot be trained: {error}") from error
    if difference is not None:
        raise TokenizerError(f"{path}: its own chat template would not be served as it is trained: {difference}")
    return [f"its own chat template: {'; '.join(words)}"]


def generation_ends(settings: dict[str, Any]) -> list[int]:
    """The ids at which a `generation_config.json` stops."""
    ends = settings.get("eos_token_id")
    return [id_ for id_ in (ends if isinstance(ends, list) else [ends]) if isinstance(id_, int)]


def _carry(tokenizer: Any, name: str, stops: list[str]) -> None:
    remember(tokenizer, name, stops)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = chat_format(tokenizer).padding or stops[0]


def _put_before(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer puts before every text."""
    bare = tokenizer("x", add_special_tokens=False)["input_ids"]
    ids = tokenizer("x")["input_ids"]
    return ids[: next((at for at in range(len(ids)) if ids[at : at + len(bare)] == bare), 0)]


def _begins_with_bos(tokenizer: Any, path: str | Path) -> bool:
    """Whether the model was trained with a BOS token before every text, as far as its tokenizer tells.

    Raises:
        TokenizerError: another token stands there.
    """
    first, bos = _put_before(tokenizer), tokenizer.bos_token
    if first and (first != [tokenizer.bos_token_id] or bos == IM_START):
        names = " ".join(tokenizer.convert_ids_to_tokens(first))
        raise TokenizerError(f"{path}: the tokenizer puts {names} before every text, which is no BOS token of ChatML's")
    template = str(tokenizer.chat_template or "")
    if first or bos in (None, IM_START) or not ("bos_token" in template or bos in template):
        return bool(first)
    try:
        return render_template(tokenizer, [{"role": "user", "content": "?"}]).startswith(bos)
    except TemplateError:  # it is replaced
        return False


def _check_template(tokenizer: Any, path: str | Path, *, own: bool, bos: bool) -> None:
    if not tokenizer.chat_template:  # default_system names that
        return
    whose = "its own chat template (default_system: template)" if own else "ChatML"
    try:
        difference = template_difference(tokenizer)
    except AlignError as error:
        raise TokenizerError(f"{path}: {whose} cannot be trained with this tokenizer: {error}") from error
    if difference is not None:
        raise TokenizerError(f"{path}: {whose} would not be served as it is trained: {difference}")
    try:
        difference = template_difference(tokenizer, tools=True)
    except TemplateError as error:
        difference = str(error)
    if own and bos and not opening_token(tokenizer):
        told = "its own chat template writes no BOS token, which the tokenizer puts before a text: none is trained"
        logger.warning("%s: %s", path, told)
    if difference is not None:
        logger.warning("%s: %s would not serve tools as they are trained: %s", path, whose, difference)
