"""A decode loop of our own, on the model's own forward: prompts read once, keys and values that stay where they are.

`generate` of transformers grows its cache by copying it at every token, repeats key heads where heads are grouped,
reads a prompt once for each of its replies, and keeps computing replies that have ended. Here

- prompts are read end to end in one row, without padding, once for all their replies (`rollouts.key_values`);
- replies that have ended leave, and waiting ones take their place, so that `batch_size` replies are at work as long as
  there are as many. The replies to one prompt start together;
- tokens are drawn by `rollouts.sampling`, whose random numbers belong to a response and a step. So what is at work
  together changes no token, to the rounding of batched matrix products.

Longer prompts come first: neighbours have about the same length, and what is too long for the memory fails at once.
Which models may is asked by `rollouts.decodable`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional

from align.runtime.devices import index_on
from align.runtime.peft_model import base_of
from rollouts.key_values import KeyValues, PromptPass, ReplyPass, attends_here, cache_keyword
from rollouts.protocol import SamplingParams
from rollouts.sampling import Choose

READ_AT_ONCE = 4096  # tokens of prompts in one pass
REFILL = 8  # waiting replies start when this part of the batch is free: a pass that reads is worth it then
LOOK_EVERY = 8  # steps between looks at which replies have ended, where looking makes the host wait


@dataclass(slots=True)
class AtWork:
    """One at work.

    Attributes:
        response: its place in the call.
        prompt: place of its prompt among those at work.
        place: its place among the replies to that prompt.
        drawn: tokens it has.
    """

    response: int
    prompt: int
    place: int
    drawn: int = 0


@torch.no_grad()
def decode(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    batch_size: int,
    choose: Choose,
    limits: Sequence[int] | None = None,
) -> None:
    """Samples `params.n` responses to each prompt, prompt-major.

    Args:
        model: one that `rollouts.decodable` lets through, in evaluation mode.
        batch_size: responses at work at most.
        choose: is given the response's place in the call.
        limits: tokens of each response at most; default `max_new_tokens` for all.
    """
    limits = limits or [params.max_new_tokens] * (len(prompts) * params.n)
    with attends_here(base_of(model)):
        loop = _Loop(model, prompts, params, batch_size, choose, limits)
        while loop.advance():
            pass


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        batch_size: int,
        choose: Choose,
        limits: Sequence[int],
    ):
        self.model, self.prompts, self.params, self.batch_size, self.choose = model, prompts, params, batch_size, choose
        self.limits = limits
        self.device = base_of(model).device
        self.places = places = min(params.n, batch_size)
        order = sorted(range(len(prompts)), key=lambda prompt: -len(prompts[prompt]))
        self.waiting = deque(
            (prompt, range(prompt * params.n + first, prompt * params.n + min(first + places, params.n)))
            for prompt in order
            for first in range(0, params.n, places)
        )
        # Prompts of which few replies are left take room too: twice as many as fill the batch, never more than replies.
        self.prompt_room = min(batch_size, 2 * (batch_size // places), len(self.waiting))
        self.cache = KeyValues(
            base_of(model).config.get_text_config(decoder=True).num_hidden_layers,
            self.prompt_room,
            min(batch_size, len(prompts) * params.n),
            max(map(len, prompts), default=0),
            max(params.max_new_tokens - 1, 1),
        )
        self.cache_keyword = cache_keyword(base_of(model))
        self.replies: list[AtWork] = []
        self.lengths: list[int] = []  # of the prompts at work
        self.tokens_R = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.ended_R = torch.zeros(0, dtype=torch.bool, device=self.device)
        self.stops = torch.tensor(params.stop_token_ids, dtype=torch.int64, device=self.device)
        self.look_every = 1 if self.device.type == "cpu" else LOOK_EVERY
        self.since_look = 0

    def advance(self) -> bool:
        """One pass: over waiting prompts where there is room, else a token more for every reply. False at the end."""
        if starting := self._starting():
            self._read(starting)
        elif self.replies:
            self._step()
        else:
            return False
        self._let_go()
        return True

    def _starting(self) -> list[tuple[int, range]]:
        """Takes from the queue what starts now: (prompt, its responses)."""
        free, tokens, starting = self.batch_size - len(self.replies), 0, []
        if self.replies and free < min(max(self.places, self.batch_size // REFILL), self.batch_size):
            return starting
        while self.waiting and len(self.lengths) + len(starting) < self.prompt_room:
            prompt, responses = self.waiting[0]
            tokens += len(self.prompts[prompt])
            if len(responses) > free or (starting and tokens > READ_AT_ONCE):
                break
            free -= len(responses)
            starting.append(self.waiting.popleft())
        return starting

    def _read(self, starting: list[tuple[int, range]]) -> None:
        """Reads prompts and draws the first token of their replies."""
        rows = [self.prompts[prompt] for prompt, _ in starting]
        runs, first = [], len(self.lengths)
        for length, run in groupby(map(len, rows)):
            count = len(list(run))
            runs.append((first, count, length))
            first += count
        self.cache.now = PromptPass(runs)
        ids_1T = index_on(self.device, [[token for row in rows for token in row]])
        positions_1T = index_on(self.device, [[at for row in rows for at in range(len(row))]])
        last_P = index_on(self.device, [len(row) for row in rows]).cumsum(0) - 1
        logits_PV = self._logits(ids_1T, positions_1T, last_P)[0]
        before = len(self.replies)
        for prompt, (_, responses) in enumerate(starting, start=len(self.lengths)):
            self.replies += [AtWork(response, prompt, place) for place, response in enumerate(responses)]
        self.lengths += map(len, rows)
        if len(self.replies) - before > len(rows):
            of_replies = [prompt for prompt, (_, responses) in enumerate(starting) for _ in responses]
            logits_PV = logits_PV.index_select(0, index_on(self.device, of_replies))
        self.tokens_R = functional.pad(self.tokens_R, (0, len(self.replies) - before))
        self.ended_R = functional.pad(self.ended_R, (0, len(self.replies) - before))
        self._draw(logits_PV, before)

    def _step(self) -> None:
        """Feeds every reply's last token and draws the next one."""
        replies, places = self.replies, self.places
        columns = [reply.drawn - 1 for reply in replies]
        lengths = [self.lengths[reply.prompt] for reply in replies]
        cells = [reply.prompt * places + reply.place for reply in replies]
        of_replies = index_on(self.device, [columns, lengths, cells])
        columns_R, lengths_R, cells_R = of_replies
        prompt_columns, reply_columns = max(lengths), max(columns) + 1
        hidden_RT = None
        if min(self.lengths) < prompt_columns or min(columns) + 1 < reply_columns:
            at_T = torch.arange(max(prompt_columns, reply_columns), device=self.device)
            hidden_RT = torch.cat(
                [at_T[:prompt_columns] >= lengths_R[:, None], at_T[:reply_columns] > columns_R[:, None]], dim=1
            )
        whole = cells == list(range(len(self.lengths) * places))
        self.cache.now = ReplyPass(
            len(self.lengths),
            places,
            prompt_columns,
            reply_columns,
            columns_R,
            None if whole else cells_R,
            hidden_RT,
        )
        logits_RV = self._logits(self.tokens_R[:, None], (lengths_R + columns_R)[:, None], 1)[:, 0]
        self._draw(logits_RV, 0)

    def _logits(self, ids: Tensor, positions: Tensor, kept: Tensor | int) -> Tensor:
        past = {self.cache_keyword: self.cache, "use_cache": True}
        out = self.model(input_ids=ids, position_ids=positions, logits_to_keep=kept, **past)
        return out.logits.float()

    def _draw(self, logits_RV: Tensor, first: int) -> None:
        """The next token of the replies from `first` on."""
        replies = self.replies[first:]
        of_replies = index_on(self.device, [[reply.response, reply.drawn] for reply in replies])
        drawn_R = self.choose(logits_RV, *of_replies.unbind(-1))
        self.tokens_R[first:] = drawn_R
        self.ended_R[first:] |= torch.isin(drawn_R, self.stops)
        for reply in replies:
            reply.drawn += 1

    def _let_go(self) -> None:
        """Lets replies leave that have ended, and prompts that have none left."""
        full = [reply.drawn == self.limits[reply.response] for reply in self.replies]
        self.since_look += 1
        if len(self.stops) and (self.since_look >= self.look_every or any(full)):
            self.since_look = 0
            full = [reply or ended for reply, ended in zip(full, self.ended_R.tolist(), strict=True)]
        if not any(full):
            return
        columns = max(reply.drawn for reply in self.replies)
        sources = _closed_up([at for at, gone in enumerate(full) if not gone])
        self.cache.move_replies(sources, columns)
        self.replies = [self.replies[source] for source in sources]
        kept_R = index_on(self.device, sources)
        self.tokens_R, self.ended_R = self.tokens_R[kept_R], self.ended_R[kept_R]
        sources = _closed_up(sorted({reply.prompt for reply in self.replies}))
        self.cache.move_prompts(sources, max(self.lengths))
        self.lengths = [self.lengths[source] for source in sources]
        places = {source: at for at, source in enumerate(sources)}
        for reply in self.replies:
            reply.prompt = places[reply.prompt]


def _closed_up(kept: list[int]) -> list[int]:
    """Where to take each of the first `len(kept)` places from, so that few move: those beyond fill the gaps."""
    count = len(kept)
    inside, beyond = set(kept[: sum(at < count for at in kept)]), iter([at for at in kept if at >= count])
    return [at if at in inside else next(beyond) for at in range(count)]
