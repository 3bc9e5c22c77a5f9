"""What a reward model's forward pass raises, told with what it was asked: how long the sequence and its reply are, and
how many tokens the model has room for.

Models with a table of positions hold a row for each; those like RoBERTa count from their pad id, so `pad_token_id` + 1
of the table's rows serve no token, others keep an offset of their own. Beyond the table a CPU raises an IndexError, and
a GPU fails at a later call and is lost to the process: such a sequence is refused before it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from align.runtime.errors import AlignError, reason_of
from align.runtime.memory import is_out_of_memory
from reward.protocol import RewardError

CURE = "sample shorter replies (max_completion_length) to shorter prompts, or use another reward model"
TABLES = ("position_embeddings", "embed_positions", "wpe")


def position_room(model: nn.Module, *, own_positions: bool = False) -> int | None:
    """How many tokens the model's table of positions serves; None without one (rotary, relative, ALiBi).

    Args:
        own_positions: whether positions are given to it, from 0 on; else it counts them itself.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or name.rpartition(".")[2] not in TABLES:
            continue
        padding = module.padding_idx
        unused = 0 if own_positions or padding is None else padding + 1
        return module.num_embeddings - (getattr(module, "offset", 0) or unused)
    return None


@contextmanager
def forward_errors(
    name: str, model: nn.Module, rows: Sequence[Sequence[int]], reply_length: Callable[[int], int], room: int | None
) -> Iterator[None]:
    """Around the forward pass over `rows`.

    Args:
        name: the reward's.
        reply_length: tokens of the reply in a row; asked when something went wrong.
        room: `position_room` of the model.

    Raises:
        RewardError: a row is longer than the room, or the model failed. A lack of memory is raised as it came: what to
            lower is known by who asked.
    """
    longest = max(range(len(rows)), key=lambda at: len(rows[at]))
    if room is not None and len(rows[longest]) > room:
        raise RewardError(f"reward {name!r}: {_words(len(rows[longest]), reply_length(longest), room)}; {CURE}")
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {reason_of(error)}"
        words = _words(len(rows[longest]), reply_length(longest), room or _named_room(model))
        raise RewardError(f"reward {name!r}: its model failed ({said}) where {words}; {CURE}") from error


def _words(length: int, reply: int, room: int | None) -> str:
    place = "" if room is None else f", and the model has room for {room}"
    return f"a reply of {reply} tokens makes {length} with its prompt{place}"


def _named_room(model: Any) -> int | None:
    config = getattr(model, "config", None)
    return getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
