"""Sampling: which prompts come next, the engine that answers them, and the next iteration's replies while this one is
trained on (`rollout.overlap`), one step off policy.

With overlap, when an iteration has its replies, the engine begins those of the next in a thread of its own, with the
weights it has: those that this iteration starts from. The trainer waits for them after the update, before it pushes the
new weights; only then does anything else use the engine. So a reply is always one iteration old, but for those of a
run's first iteration, and `importance_sampling_correction` weights them.

The thread runs `engine.generate` and nothing else: prompts, tokens and parameters are made before it starts, and
`sample` takes the finished completions where it would have sampled. A `collect` of a subclass that samples other
prompts, or in another way, gets its replies from the newest weights as without overlap; that is said once.

What is finished is part of a checkpoint, because the weights that made it are gone; what was begun and not finished is
begun again from the same weights. Where prefetching fails, its prompts go back to where they were drawn from, the
iteration that is running ends as ever, and the next one stops the run before it begins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from accelerate import Accelerator

from align.data.encode import encode_prompts
from align.data.prompts import MixedPromptSampler, PromptSampler
from align.recipe.ppo_section import PPOConfig
from align.runtime.errors import AlignError
from align.trainers import sharding
from align.trainers.ppo.guards import Together, enough_memory, together
from align.trainers.ppo.types import Samples, full_logprobs
from align.trainers.ppo.weight_sync import WeightSync
from data_formats.records import Prompt
from rollouts.protocol import Completion, Engine, SamplingParams

logger = logging.getLogger(__name__)

Collect = Callable[[Sequence[Prompt]], Samples]
Row = TypeVar("Row")
Following = Callable[[], SamplingParams | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one iteration samples.

    Attributes:
        indexes: of its prompts, over all ranks.
        drawn_from: state of the prompt sampler before it drew them.
        prompt_ids: rendered prompts of this rank.
        params: how they are sampled.
        completions: of this rank's prompts; None until they are finished.
    """

    indexes: list[int]
    drawn_from: dict[str, Any]
    prompt_ids: list[list[int]]
    params: SamplingParams
    completions: list[Completion] | None = None


class Rollout:
    """Where an iteration's replies come from. Its state is the batch that was prefetched; where the prompts stand is
    `sampler`'s. Every rank calls every method but `sample`.

    Args:
        prompts: what is sampled to; `sampler` draws indexes of them, the same on every rank.
        sync: brings the engine the policy's weights before it samples.
        end_id: the token that ends a reply.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        sampler: PromptSampler | MixedPromptSampler,
        sync: WeightSync,
        *,
        config: PPOConfig,
        tokenizer: Any,
        end_id: int,
        accelerator: Accelerator,
    ):
        self.engine, self.prompts, self.sampler, self.sync = engine, prompts, sampler, sync
        self.config, self.tokenizer, self.end_id = config, tokenizer, end_id
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.seconds = 0.0  # that the trainer waited for the batch prefetched last
        self._batch: Batch | None = None
        self._sampling: Future[list[Completion]] | None = None
        self._ready: Batch | None = None
        self._problem: Exception | None = None
        self._told = False

    @property
    def failed(self) -> bool:
        """Whether the coming batch could not be prefetched; `next` will say so."""
        return self._problem is not None

    @property
    def metrics(self) -> dict[str, float]:
        """`seconds/wait` with overlap."""
        return {"seconds/wait": self.seconds} if self.config.rollout.overlap else {}

    def next(self, version: int, collect: Collect, following: Following, together: Together = together) -> Samples:
        """This rank's replies of the coming iteration.

        Args:
            version: of the policy's weights.
            collect: gives the replies to this rank's prompts; by default `sample` is behind it.
            following: says how the iteration after it samples, None where there is none; asked with overlap alone.
            together: runs what may fail on one rank.

        Raises:
            TrainingError: on every rank, when sampling fails on any, or prefetching has.
        """
        self.raise_problem()
        self._ready, self._batch = self._batch, None
        indexes = self.sampler.next() if self._ready is None else self._ready.indexes
        prompts = self._mine(indexes)
        self.sync.push_if_new(version)  # before the first iteration; later ones end with it
        with sharding.unsharded(*self.sync.sampled_modules):
            samples = together(enough_memory(self.config, "rollout")(lambda: collect(prompts)))
        self._prefetch(following)
        return samples

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Samples:
        """Replies to these prompts: those that were prefetched for these very prompts in this very way, or new ones."""
        prompt_ids = self._encoded(prompts)
        completions = self._take(prompt_ids, params)
        if completions is None:
            self.engine.wake()
            completions = self.engine.generate(prompt_ids, params)
            self.engine.sleep()
        reply_ids = tuple(tuple(completion.token_ids) for completion in completions)
        texts = self.tokenizer.batch_decode([list(ids) for ids in reply_ids], skip_special_tokens=True)
        return Samples(
            prompts=tuple(prompt for prompt in prompts for _ in range(params.n)),
            prompt_ids=tuple(tuple(ids) for ids in prompt_ids for _ in range(params.n)),
            reply_ids=reply_ids,
            replies=tuple(texts),
            finished=tuple(ids[-1] == self.end_id for ids in reply_ids),
            engine_logps=tuple(full_logprobs(completion) for completion in completions),
            kept_mass=tuple(completion.kept_mass for completion in completions),
            supports=tuple(completion.support for completion in completions),
            weight_versions=tuple(completion.weight_version for completion in completions),
        )

    def _mine(self, indexes: Sequence[int]) -> list[Prompt]:
        """Neighbours, so that the ranks' replies one after the other are in the order of `indexes`, of any number of
        ranks."""
        return [self.prompts[index] for index in _share(indexes, self.rank, self.world_size)]

    def _encoded(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return encode_prompts(self.tokenizer, [one.messages for one in prompts], [one.tools for one in prompts])

    def _take(self, prompt_ids: list[list[int]], params: SamplingParams) -> list[Completion] | None:
        ready = self._ready
        if ready is None or (ready.prompt_ids, replace(ready.params, seed=params.seed)) != (prompt_ids, params):
            return None  # with whose seed they were drawn does not matter
        self._ready = None
        return ready.completions

    def _prefetch(self, following: Following) -> None:
        """With overlap, draw the next iteration's prompts and have the engine begin their replies."""
        if self._ready is not None and not self._told:
            self._told = True
            logger.warning(
                "overlap: collect() did not take the replies that were sampled ahead, because it asked for other "
                "prompts or parameters; it gains nothing here"
            )
        self._ready, self.seconds = None, 0.0
        if not self.config.rollout.overlap:
            return

        def start() -> None:
            params = following()
            if params is None:
                return
            drawn_from, indexes = self.sampler.state_dict(), self.sampler.next()
            self._batch = Batch(indexes, drawn_from, self._encoded(self._mine(indexes)), params)
            self.engine.wake()
            executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
            self._sampling = executor.submit(self.engine.generate, self._batch.prompt_ids, self._batch.params)
            executor.shutdown(wait=False)  # the thread ends with its one piece of work

        together(start)

    def wait(self) -> None:
        """Until the engine is free again, on all ranks; a failure is kept for `raise_problem`."""
        if self._sampling is None:
            return
        began, batch, sampling = time.perf_counter(), self._batch, self._sampling

        def finish() -> list[Completion]:
            completions = sampling.result()
            self.engine.sleep()
            return completions

        try:
            self._batch = replace(batch, completions=together(finish))
        except Exception as problem:
            self.sampler.load_state_dict(batch.drawn_from)
            self._batch, self._problem = None, problem
        self._sampling, self.seconds = None, time.perf_counter() - began

    def raise_problem(self) -> None:
        """Wait, and raise, once, what went wrong when the coming batch was prefetched (TrainingError, or the
        engine's)."""
        self.wait()
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _drop(self) -> None:
        """Forget the coming batch, once the engine is done with it, and what went wrong with it."""
        if self._sampling is not None:
            futures.wait([self._sampling])
            with suppress(AlignError):  # something else went wrong, which is told
                self.engine.sleep()
        self._batch = self._ready = self._problem = self._sampling = None

    def state_dict(self) -> dict[str, Any]:
        """This rank's finished batch as plain values; empty without one. Waits for one that is being sampled."""
        self.wait()
        if self._batch is None:
            return {}
        found = {name: getattr(self._batch, name) for name in ("indexes", "drawn_from", "prompt_ids")}
        names = [field.name for field in fields(Completion)]
        columns = {name: [getattr(one, name) for one in self._batch.completions] for name in names}
        return {**found, "params": asdict(self._batch.params), "completions": columns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave; whatever was begun since is forgotten. After the sampler's own state.

        A run that no longer samples ahead, or with batches of another size, goes on with the prompts of that batch and
        samples them with its own weights.
        """
        self._drop()
        if not state:
            return
        if not self.config.rollout.overlap or len(state["indexes"]) != self.config.rollout_batch_size:
            self.sampler.load_state_dict(state["drawn_from"])
            return
        columns = state["completions"]
        rows = zip(*columns.values(), strict=True)
        self._batch = Batch(
            state["indexes"],
            state["drawn_from"],
            state["prompt_ids"],
            SamplingParams(**state["params"]),
            [Completion(**dict(zip(columns, row, strict=True))) for row in rows],
        )

    def dealt(self, states: list[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
        """The finished batches of all ranks, cut for another number of them."""
        if not all(states):
            return [{}] * ranks
        prompt_ids = [ids for state in states for ids in state["prompt_ids"]]
        names = states[0]["completions"]
        columns = {name: [one for state in states for one in state["completions"][name]] for name in names}
        dealt = []
        for rank in range(ranks):
            cut = {name: _share(column, rank, ranks) for name, column in columns.items()}
            dealt.append({**states[0], "prompt_ids": _share(prompt_ids, rank, ranks), "completions": cut})
        return dealt


def _share(rows: Sequence[Row], rank: int, ranks: int) -> list[Row]:
    """This rank's neighbours of `rows`."""
    size = len(rows) // ranks
    return list(rows[rank * size : (rank + 1) * size])
