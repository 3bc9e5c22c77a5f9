"""Sampling: which prompts come next, the engine that answers them, and the replies of the next `rollout.overlap` = k
iterations while this one is trained on, k iterations off policy.

With overlap, when iteration i has its replies, the queue of an engine with weights of its own is filled up to those of
iteration i + k, which are sampled with the weights that iteration i starts from. A thread works the queue off, a batch
after another. So a reply is always k iterations old, but for those of a run's first k + 1 batches, which all have its
first weights, and `importance_sampling_correction` weights them.

Weights come to the engine at two places. Where the queue is empty, the trainer pushes at the end of the update; with
k = 1 that is always so, since the trainer needs the last batch of the queue next. Else the engine is still at work with
older ones: the batch takes a copy of the new weights along, on the CPU, which the thread pushes just before it. At most
k copies are there at once. Such a push is not probed, as the trainer's weights have gone on meanwhile; the next one of
the trainer is. Prompts, tokens and parameters are made before a batch is queued, and `sample` takes the finished
completions where it would have sampled. A `collect` of a subclass that samples other prompts, or in another way, gets
its replies from the newest weights as without overlap, once the queue is empty; that is said once.

A checkpoint waits for the queue and holds its batches, because the weights that make them are gone afterwards; so does
an evaluation, which needs the engine. Where sampling ahead fails, the prompts of that batch and of those behind it go
back to where they were drawn from, the iterations before it end as ever, and the one that needs it stops the run before
it begins.
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
from align.trainers.ppo.weight_sync import HeldWeights, WeightSync
from data_formats.records import Prompt
from rollouts.protocol import Completion, Engine, SamplingParams

logger = logging.getLogger(__name__)

Collect = Callable[[Sequence[Prompt]], Samples]
Row = TypeVar("Row")
Following = Callable[[int], SamplingParams | None]


@dataclass(eq=False, slots=True)
class Batch:
    """What one iteration samples.

    Attributes:
        indexes: of its prompts, over all ranks.
        drawn_from: state of the prompt sampler before it drew them.
        prompt_ids: rendered prompts of this rank.
        params: how they are sampled.
        completions: of this rank's prompts; None until they are finished.
        sampling: the thread's work on it; None of one that comes from a checkpoint.
    """

    indexes: list[int]
    drawn_from: dict[str, Any]
    prompt_ids: list[list[int]]
    params: SamplingParams
    completions: list[Completion] | None = None
    sampling: Future[list[Completion]] | None = None


class Rollout:
    """Where an iteration's replies come from. Its state is the batches that were sampled ahead; where the prompts
    stand is `sampler`'s. Every rank calls every method but `sample`.

    Args:
        prompts: what is sampled to; `sampler` draws indexes of them, the same on every rank.
        sync: brings the engine the policy's weights before it samples.
        version: says which weights the policy has now.
        end_id: the token that ends a reply.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        sampler: PromptSampler | MixedPromptSampler,
        sync: WeightSync,
        *,
        version: Callable[[], int],
        config: PPOConfig,
        tokenizer: Any,
        end_id: int,
        accelerator: Accelerator,
    ):
        self.engine, self.prompts, self.sampler, self.sync = engine, prompts, sampler, sync
        self.config, self.tokenizer, self.end_id, self.version = config, tokenizer, end_id, version
        self.rank, self.world_size = accelerator.process_index, accelerator.num_processes
        self.seconds = 0.0  # that the trainer waited for batches sampled ahead, since it queued the last
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._queue: list[Batch] = []
        self._queued_version: int | None = None  # of the weights that the engine has at the end of the queue
        self._ready: Batch | None = None
        self._problem: Exception | None = None
        self._told = False

    @property
    def free(self) -> bool:
        """Whether the engine may take new weights from the trainer: it samples nothing and has not failed."""
        begun = [batch.sampling for batch in self._queue if batch.sampling is not None]
        return self._problem is None and all(one.done() and one.exception() is None for one in begun)

    @property
    def metrics(self) -> dict[str, float]:
        """`seconds/wait` with overlap."""
        return {"seconds/wait": self.seconds} if self.config.rollout.overlap else {}

    def next(self, collect: Collect, following: Following, together: Together = together) -> Samples:
        """This rank's replies of the coming iteration.

        Args:
            collect: gives the replies to this rank's prompts; by default `sample` is behind it.
            following: says how the iteration so many after it samples, None where there is none; asked with overlap
                alone.
            together: runs what may fail on one rank.

        Raises:
            TrainingError: on every rank, when sampling fails on any, or sampling ahead has.
        """
        self.raise_problem()
        self._ready = self._queue.pop(0) if self._queue else None
        indexes = self.sampler.next() if self._ready is None else self._ready.indexes
        prompts = self._mine(indexes)
        if self.free:
            self._push()  # before the first iteration; later ones end with it
        with sharding.unsharded(*self.sync.sampled_modules):
            samples = together(enough_memory(self.config, "rollout")(lambda: collect(prompts)))
        self._fill(following)
        return samples

    def sample(self, prompts: Sequence[Prompt], params: SamplingParams) -> Samples:
        """Replies to these prompts: those that were prefetched for these very prompts in this very way, or new ones."""
        prompt_ids = self._encoded(prompts)
        completions = self._take(prompt_ids, params)
        if completions is None:
            if not self._idle:
                self.wait_all()
                self.raise_problem()
                self._push()
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

    @property
    def _idle(self) -> bool:
        return all(batch.sampling is None or batch.sampling.done() for batch in self._queue)

    def _push(self) -> None:
        self._queued_version = self.version()
        self.sync.push_if_new(self._queued_version)

    def _fill(self, following: Following) -> None:
        """With overlap, draw the prompts of the iterations to come and queue them."""
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
            while len(self._queue) < self.config.rollout.overlap:
                params = following(len(self._queue) + 1)
                if params is None:
                    return
                drawn_from, indexes = self.sampler.state_dict(), self.sampler.next()
                self._begin(Batch(indexes, drawn_from, self._encoded(self._mine(indexes)), params))

        together(start)

    def _begin(self, batch: Batch) -> None:
        """Queue it, with the weights as they are now."""
        version, held = self.version(), None
        if self._queued_version != version:  # the engine is at work with older ones
            held, self._queued_version = self.sync.held(version), version
        elif self._idle:
            self.engine.wake()
        batch.sampling = self._thread.submit(self._work, batch, held)
        self._queue.append(batch)

    def _work(self, batch: Batch, held: HeldWeights | None) -> list[Completion]:
        """In the thread."""
        if held is not None:
            self.sync.deliver(held)
            self.engine.wake()
        return self.engine.generate(batch.prompt_ids, batch.params)

    def wait(self) -> None:
        """Until the coming batch is finished, on all ranks; a failure is kept for `raise_problem`."""
        self._finish(self._queue[:1])

    def wait_all(self) -> None:
        """Until the engine is free, likewise."""
        self._finish(list(self._queue))

    def _finish(self, batches: Sequence[Batch]) -> None:
        began = time.perf_counter()
        for batch in batches:
            if batch.completions is not None or self._problem is not None:
                continue

            def finish(sampling: Future[list[Completion]] = batch.sampling) -> list[Completion]:
                completions = sampling.result()
                if self._idle:
                    self.engine.sleep()
                return completions

            try:
                batch.completions = together(finish)
            except Exception as problem:
                self._drop_from(self._queue.index(batch))
                self.sampler.load_state_dict(batch.drawn_from)
                self._problem = problem
        self.seconds += time.perf_counter() - began

    def raise_problem(self) -> None:
        """Wait for the coming batch, and raise, once, what went wrong when batches were sampled ahead (TrainingError,
        or the engine's)."""
        self.wait()
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _drop_from(self, at: int) -> None:
        """Forget the batches from this one of the queue on, once the engine is done with them."""
        begun = [batch.sampling for batch in self._queue[at:] if batch.sampling is not None]
        futures.wait([one for one in begun if not one.cancel()])
        self._queue, self._queued_version = self._queue[:at], None

    def mark(self) -> list[Batch]:
        """The boundary before an iteration, for `back_to`: the coming batch is waited for, those behind it are not."""
        self.wait()
        return list(self._queue)

    def back_to(self, marked: Sequence[Batch]) -> None:
        """Forget what was queued since, and what went wrong with it. After the sampler's own state."""
        self._drop_from(sum(batch in marked for batch in self._queue))  # the queue is worked off in order
        self._queue, self._ready, self._problem = list(marked), None, None
        if self._idle:
            with suppress(AlignError):  # something else went wrong, which is told
                self.engine.sleep()

    def state_dict(self) -> list[dict[str, Any]]:
        """This rank's finished batches as plain values. Waits for those that are being sampled."""
        self.wait_all()
        return [_plain(batch) for batch in self._queue]

    def load_state_dict(self, state: Sequence[dict[str, Any]]) -> None:
        """Put back what `state_dict` gave; whatever was begun since is forgotten. After the sampler's own state.

        A run that samples fewer batches ahead, or batches of another size, goes on with the prompts of those batches
        and samples them with its own weights.
        """
        self.back_to(())
        size = self.config.rollout_batch_size
        if len(state) > self.config.rollout.overlap or any(len(batch["indexes"]) != size for batch in state):
            self.sampler.load_state_dict(state[0]["drawn_from"])
            return
        self._queue = [_batch(values) for values in state]

    def dealt(self, states: list[list[dict[str, Any]]], ranks: int) -> list[list[dict[str, Any]]]:
        """The finished batches of all ranks, cut for another number of them."""
        queues = zip(*states, strict=True)  # every rank's part of a batch
        cut = [_dealt(parts, ranks) for parts in queues]
        return [[batch[rank] for batch in cut] for rank in range(ranks)]


def _dealt(parts: Sequence[dict[str, Any]], ranks: int) -> list[dict[str, Any]]:
    prompt_ids = [ids for part in parts for ids in part["prompt_ids"]]
    names = parts[0]["completions"]
    columns = {name: [one for part in parts for one in part["completions"][name]] for name in names}
    return [
        {
            **parts[0],
            "prompt_ids": _share(prompt_ids, rank, ranks),
            "completions": {name: _share(column, rank, ranks) for name, column in columns.items()},
        }
        for rank in range(ranks)
    ]


def _share(rows: Sequence[Row], rank: int, ranks: int) -> list[Row]:
    """This rank's neighbours of `rows`."""
    size = len(rows) // ranks
    return list(rows[rank * size : (rank + 1) * size])


def _plain(batch: Batch) -> dict[str, Any]:
    found = {name: getattr(batch, name) for name in ("indexes", "drawn_from", "prompt_ids")}
    names = [field.name for field in fields(Completion)]
    columns = {name: [getattr(one, name) for one in batch.completions] for name in names}
    return {**found, "params": asdict(batch.params), "completions": columns}


def _batch(values: dict[str, Any]) -> Batch:
    columns = values["completions"]
    completions = [Completion(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    params = SamplingParams(**values["params"])
    return Batch(values["indexes"], values["drawn_from"], values["prompt_ids"], params, completions)
