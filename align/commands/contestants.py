"""Which models `align eval` means by a word, and their replies to the prompts: sampled, or read from a file."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.commands.kinds import kind_of
from align.data.replies import KINDS, RepliesOfFile, replies_by_prompt
from align.runtime import files
from align.runtime.errors import AlignError, MissingFileError
from align.runtime.made import MadeWith
from align.runtime.paths import typed_path
from align.runtime.terminal import shortened
from data_formats.files import ROW_ENDINGS, ending
from data_formats.records import Prompt
from data_formats.writing import as_row

if TYPE_CHECKING:
    from rollouts.protocol import SamplingParams

ALIAS = re.compile(r"(\w[\w.-]*)=(.+)", flags=re.ASCII)


class ContestError(AlignError, ValueError):
    """Models, replies or judges that cannot be put against each other."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model, or a file of its replies.

    Attributes:
        name: in tables and file names.
        path: a model's folder or hub id, or the file.
        policy: of a file that holds the replies of several.
    """

    name: str
    path: str
    is_file: bool = False
    policy: str = ""


def file_name(text: str) -> str:
    """The text as a name for files and figures: letters, digits, `_`, `.`, `-`."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.") or "unnamed"


def alias(word: str) -> tuple[str | None, str]:
    """`NAME=REST` in two; None for what has no name of its own."""
    found = None if typed_path(word).exists() else ALIAS.fullmatch(word)
    return (found[1], found[2]) if found else (None, word)


def require_different(what: str, names: Sequence[str]) -> None:
    """Raises ContestError where two have the same name."""
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise ContestError(f"two {what}s are called '{twice}': give them names, as in old=… new=…")


def contestants(words: Sequence[str]) -> list[Contestant]:
    """The models that are named, the earlier one first.

    Raises:
        ContestError: fewer than two, or two of the same name.
        MissingFileError, NotAPolicyError: nothing there, or no language model.
    """
    found = [_contestant(*alias(word)) for word in words]
    if len(found) < 2:
        raise ContestError("name two models at least, the earlier and the later one, or files of their replies")
    require_different("model", [one.name for one in found])
    return found


def _contestant(name: str | None, word: str) -> Contestant:
    from align.models.named import called, policy_at

    file, colon, policy = word.rpartition(":")
    if typed_path(word).is_file():
        return Contestant(name or file_name(typed_path(word).name.partition(".")[0]), word, is_file=True)
    if colon and typed_path(file).is_file():
        return Contestant(name or file_name(policy), file, is_file=True, policy=policy)
    if ending(typed_path(word)) in ROW_ENDINGS:
        raise MissingFileError(f"{word}: no such file of replies; check the path")
    path = policy_at(word)
    return Contestant(name or file_name(called(path)), path)


def digest(prompts: Sequence[Prompt]) -> str:
    """Tells whether prompts are still the same, with all their fields."""
    return hashlib.sha256(repr(prompts).encode(errors="surrogatepass")).hexdigest()[:16]


def replies_of(
    one: Contestant,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    made: MadeWith,
    *,
    engine: str = "auto",
    max_row_mb: float = 64,
) -> list[list[str]]:
    """`params.n` replies to each prompt, sampled where they are not there yet; `<folder>/replies/NAME.jsonl`.

    Raises:
        ContestError: a file that has too few.
        ChatError, ModelFileError, TokenizerError: a prompt that is too long for the model; a model that cannot speak.
    """
    file = made.folder / "replies" / f"{one.name}.jsonl"
    sampling = {"samples": params.n} if one.is_file else {"sampling": asdict(params)}
    what = {"path": one.path, "policy": one.policy, "its files": files.stamp(one.path)}
    made.require(file, what | {"prompts": digest(prompts)} | sampling)
    if one.is_file:
        files.write_json_lines(file, _rows_of_file(one, prompts, params.n, max_row_mb))
    from align.chat.batch import replies_of_model

    return replies_of_model(one.path, one.name, params, prompts, file, engine=engine)


def _rows_of_file(
    one: Contestant, prompts: Sequence[Prompt], number: int, max_row_mb: float
) -> Iterator[dict[str, Any]]:
    """Rows as `answer_prompts` writes them."""
    options = {"format": "auto", "max_row_mb": max_row_mb}
    kind = kind_of(Path(one.path), options)
    if kind not in KINDS:
        raise ContestError(f"{one.path} holds {kind.__name__.lower()}s, without replies")
    given = replies_by_prompt(RepliesOfFile(Path(one.path), kind, **options), one.policy)
    asked = [given.get(tuple((turn.role, turn.content) for turn in prompt.messages), []) for prompt in prompts]
    few = [prompt for prompt, texts in zip(prompts, asked, strict=True) if len(texts) < number]
    if few:
        lacks = "no reply" if number == 1 else f"fewer than {number} replies"
        raise ContestError(
            f"{one.path} has {lacks} to {len(few)} of the {len(prompts)} prompts, the first of them "
            f"'{shortened(few[0].messages[-1].content)}': add them, or leave those prompts out"
        )
    for prompt, texts in zip(prompts, asked, strict=True):
        for text in texts[:number]:
            yield {"prompt": as_row(prompt)["prompt"], "model": one.name, "completion": text}
