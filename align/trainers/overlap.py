"""The next iteration's replies, sampled while this one is trained on (`rollout.overlap`): one step off policy.

When an iteration has its replies, the engine begins those of the next in a thread of its own, with the weights it has:
those that this iteration starts from. The trainer waits for them after the update, before it pushes the new weights;
only then does anything else use the engine. So a reply is always one iteration old, but for those of a run's first
iteration, and `importance_sampling_correction` weights them.

The thread runs `engine.generate` and nothing else: prompts, tokens and parameters are made before it starts, and
`collect` takes the finished completions where it would have sampled. A `collect` of a subclass that samples other
prompts, or in another way, gets its replies from the newest weights as without overlap; that is said once.

What is finished is part of a checkpoint, because the weights that made it are gone; what was begun and not finished is
begun again from the same weights. Where sampling ahead fails, its prompts go back to where they were drawn from, the
iteration that is running ends as ever, and the next one stops the run before it begins.
"""

from __future__ import annotations

import logging
import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from align.data.encode import encode_prompts
from data_formats.errors import AlignError
from rollouts.protocol import Completion, SamplingParams

if TYPE_CHECKING:
    from align.trainers.ppo import PPOTrainer

logger = logging.getLogger(__name__)


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


class Ahead:
    """The batch of the coming iteration. Every method is called by all ranks; without overlap they do nothing."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer
        self.seconds = 0.0  # that the trainer waited for the batch begun last
        self._batch: Batch | None = None
        self._sampling: Future[list[Completion]] | None = None
        self._ready: Batch | None = None
        self._problem: Exception | None = None
        self._told = False

    @property
    def failed(self) -> bool:
        """Whether the coming batch could not be sampled; `next_prompts` will say so."""
        return self._problem is not None

    def next_prompts(self) -> list[int]:
        """Indexes of this iteration's prompts, over all ranks: of the batch that was begun before, else drawn now.

        Raises:
            TrainingError: that batch could not be sampled.
        """
        self.wait()
        self.raise_problem()
        self._ready, self._batch = self._batch, None
        return self.trainer.sampler.next() if self._ready is None else self._ready.indexes

    def take(self, prompt_ids: list[list[int]], params: SamplingParams) -> list[Completion] | None:
        """The completions that were sampled ahead for these very prompts in this very way, once; else None."""
        ready = self._ready
        if ready is None or (ready.prompt_ids, ready.params) != (prompt_ids, params):
            return None
        self._ready = None
        return ready.completions

    def begin(self) -> None:
        """Draw the next iteration's prompts and have the engine begin their replies; nothing in the last iteration."""
        trainer = self.trainer
        if self._ready is not None and not self._told:
            self._told = True
            logger.warning(
                "overlap: collect() did not take the replies that were sampled ahead, because it asked for other "
                "prompts or parameters; it gains nothing here"
            )
        self._ready, self.seconds = None, 0.0
        if not trainer.config.rollout.overlap or trainer.state.global_step + 1 >= trainer.state.max_steps:
            return
        trainer.together(self._start)

    def _start(self) -> None:
        trainer = self.trainer
        drawn_from, indexes = trainer.sampler.state_dict(), trainer.sampler.next()
        prompts = [trainer.prompts[index] for index in indexes[trainer.rank :: trainer.world_size]]
        ids = encode_prompts(trainer.tokenizer, [one.messages for one in prompts], [one.tools for one in prompts])
        self._batch = Batch(indexes, drawn_from, ids, self._next_params())
        trainer.engine.wake()
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sampling-ahead")
        self._sampling = executor.submit(trainer.engine.generate, ids, self._batch.params)
        executor.shutdown(wait=False)  # the thread ends with its one piece of work

    def _next_params(self) -> SamplingParams:
        """What `sampling_params` will say in the next iteration."""
        state = self.trainer.state
        state.global_step += 1
        try:
            return self.trainer.sampling_params()
        finally:
            state.global_step -= 1

    def wait(self) -> None:
        """Until the engine is free again, on all ranks; a failure is kept for `raise_problem`."""
        if self._sampling is None:
            return
        began, batch, sampling = time.perf_counter(), self._batch, self._sampling

        def finish() -> list[Completion]:
            completions = sampling.result()
            self.trainer.engine.sleep()
            return completions

        try:
            self._batch = replace(batch, completions=self.trainer.together(finish))
        except Exception as problem:
            self.trainer.sampler.load_state_dict(batch.drawn_from)
            self._batch, self._problem = None, problem
        self._sampling, self.seconds = None, time.perf_counter() - began

    def raise_problem(self) -> None:
        """Raises, once, what went wrong when the coming batch could not be sampled (TrainingError, or the engine's)."""
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def drop(self) -> None:
        """Forget the coming batch, once the engine is done with it, and what went wrong with it."""
        if self._sampling is not None:
            futures.wait([self._sampling])
            with suppress(AlignError):  # something else went wrong, which is told
                self.trainer.engine.sleep()
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
        """Put back what `state_dict` gave; whatever was begun since is forgotten.

        A run that no longer samples ahead, or with batches of another size, goes on with the prompts of that batch and
        samples them with its own weights.
        """
        self.drop()
        if not state:
            return
        config = self.trainer.config
        if not config.rollout.overlap or len(state["indexes"]) != config.rollout_batch_size:
            self.trainer.sampler.load_state_dict(state["drawn_from"])
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
