"""What the trainer's evaluations add: held-out loss by category, sampled replies, the best checkpoint so far.

Every rank samples replies to its share of the prompts, from the gathered module where it is sharded, and then knows all
of them: those of one process. An engine that fails on one rank ends the stage on all. Sampling draws from a generator
of its own, so an evaluation changes nothing in what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from align.evaluation.heldout import loss_figures
from align.evaluation.samples import replies_by_category, reply_figures, sample_replies
from align.runs.errors import TrainingError
from align.runs.metrics import MetricsLog
from align.runtime.memory import memory_errors
from align.runtime.ranks import spread
from align.stages import common, supervised
from align.stages.best_checkpoint import BestCheckpoint
from align.trainers import sharding
from data_formats.records import Prompt
from rollouts.select import make_engine

Evaluation = dict[str, Any]


class Evaluations(TrainerCallback):
    """Called by the trainer after every evaluation; adds `eval_end_rate`, `eval_distinct` and `eval_reply_tokens` to
    the log and the replies, with their step, to `samples.jsonl`.

    Args:
        trainer: the trainer this callback is added to.
        tokenizer: of the trainer's model.
        prompts: what is asked at every evaluation, at most `eval_num_replies` of them.
        out_dir: the stage's folder.
        max_new_tokens: the longest reply.
        batch_size: replies generated at once.
        seed: of the sampling, the same at every evaluation.
        best: keeps the best model, where that is asked for.
    """

    def __init__(
        self,
        trainer: Any,
        tokenizer: Any,
        prompts: Sequence[Prompt],
        out_dir: Path,
        *,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        best: BestCheckpoint | None = None,
    ):
        self.trainer, self.tokenizer, self.prompts, self.best = trainer, tokenizer, prompts, best
        self.max_new_tokens, self.batch_size, self.seed = max_new_tokens, batch_size, seed
        self.metrics, self.samples = MetricsLog(out_dir / "metrics.jsonl"), SampleFile(out_dir / "samples.jsonl")
        self.last: Evaluation | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.best is not None:
            self.best.tell_of_loss(state.log_history, state.global_step)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        rows = self._ask()
        figures = reply_figures(rows)
        if figures:
            logged = ("end_rate", "distinct", "reply_tokens")
            self.trainer.log({f"eval_{name}": figures[name] for name in logged})
        self.samples.replace(state.global_step, rows)
        loss = loss_figures(metrics)
        by_category = merge(loss.pop("by_category"), replies_by_category(rows))
        self.last = {"step": state.global_step, **loss, **figures, "by_category": by_category}
        if self.best is not None:
            self.best.offer(self.last)

    def try_sampling(self) -> None:
        """Sample a token after each prompt of a batch a rank, so that an engine that fails does so before training."""
        prompts = sorted(self.prompts, key=lambda prompt: -sum(len(turn.content) for turn in prompt.messages))
        self._ask(prompts[: self.batch_size * self.trainer.args.world_size], 1)

    def _ask(self, prompts: Sequence[Prompt] | None = None, longest: int | None = None) -> list[dict[str, Any]]:
        """The sampled replies, on every rank."""
        asked, longest = self.prompts if prompts is None else prompts, longest or self.max_new_tokens

        def sample(part: Sequence[Prompt], first: int) -> list[dict[str, Any]]:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            engine = make_engine("hf", model, pad_token_id=self.tokenizer.pad_token_id, batch_size=self.batch_size)
            with memory_errors("sampling", "eval_batch_size", "max_completion_length"):
                return sample_replies(engine, self.tokenizer, part, longest, self.seed, first)

        with sharding.unsharded(self.trainer.model):
            return spread(asked, sample, TrainingError)

    def final(self) -> Evaluation:
        """The evaluation of the model as it is after training: the one of the last step, or a new one.

        A stage that was killed after its last step evaluates again; those lines take the place of the first's.
        """
        step = self.trainer.state.global_step
        if self.last is None or self.last["step"] != step:
            lines = self.metrics.read()
            common.write_lines(self.metrics.path, [line for line in lines if not _of_evaluation(line, step)])
            with supervised.evaluating(self.trainer):
                self.trainer.evaluate()
            if self.trainer.args.eval_strategy != "no":  # then that of a whole run stands before its last line
                lines = self.metrics.read()
                lines.sort(key=lambda line: line["step"] == step and "train_loss" in line)
                common.write_lines(self.metrics.path, lines)
        return self.last


def _of_evaluation(line: Evaluation, step: int) -> bool:
    return line.get("step") == step and any(key.startswith("eval_") for key in line)


class SampleFile:
    """`samples.jsonl`: one line a reply with the step it was sampled at. Written by the first rank alone."""

    def __init__(self, path: Path):
        self.log = MetricsLog(path)

    def replace(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        """Put `rows` in place of those of this step and later ones (of a run that was left), atomically."""
        kept = [row for row in self.log.read() if row.get("step", 0) < step]
        common.write_lines(self.log.path, [*kept, *({"step": step, **row} for row in rows)])


def merge(*parts: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """One dict of figures a category from several."""
    names = sorted(set().union(*parts))
    return {name: {key: value for part in parts for key, value in part.get(name, {}).items()} for name in names}
