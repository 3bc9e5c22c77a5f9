"""The candidates of a round of rejection sampling: K replies to every prompt, scored; `samples.jsonl`.

A line is a row of ours that reads as scored replies (and so as comparisons for the next reward model): `prompt`,
`replies` with `content` and `score`, `category`; beside the score each reply has `stop`, `tokens` and the scores of the
reward's `parts`; beside the replies stand `sampling`, how they were drawn, and `weights`, what identifies the model's.
`stop` is `end` where the model ended the reply itself, `length` where it was cut, else `other`. A
score is null where the reward failed on the reply (`on_reward_error: mask`), which is then never chosen.

The prompts are cut into pieces that do not depend on the number of ranks. Each rank samples every n-th piece with a
seed of the piece's own and keeps it in `pieces/` as soon as it is scored, so that a run that is stopped, by a reward
that fails too, goes on where it was. The first rank joins them.

The samples of earlier stages (`earlier_from`) are judged in the same way, into `earlier.jsonl`: scores of two reward
models have no unit in common. Read from text, a reply may have other tokens than those it was sampled as.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from align.data.replies import PromptedReply
from align.data.stored_replies import stop_of
from align.evaluation.replies import JudgedReply, judged_replies
from align.evaluation.scoring import judge_replies
from align.models.identity import weights_version
from align.recipe import Recipe
from align.recipe.rejection_section import SamplingSection
from align.runs.errors import TrainingError
from align.runs.seeding import derive
from align.runtime.errors import MissingFileError
from align.runtime.ranks import agree, barrier, is_main
from align.stages import common
from align.stages.prompts import check_room
from align.stages.rewards import build_reward
from data_formats.chat_format import chat_format
from data_formats.errors import DataError
from data_formats.records import Prompt, Reply, Scored
from data_formats.writing import as_row
from reward.protocol import Reward, prompt_columns
from rollouts.protocol import Engine, SamplingParams

FILE, EARLIER, PIECES = "samples.jsonl", "earlier.jsonl", "pieces"
BATCHES_A_PIECE = 8
REWARD = "reward"
Row = dict[str, Any]
Asked = tuple[tuple[str, str], ...]  # role and content of each turn


class Sampler:
    """A model with its reward on this rank's device, loaded by `open`.

    Args:
        path: folder or hub id of the model.
        stage: whose section says how to sample and what the reward is.
    """

    def __init__(self, recipe: Recipe, path: str, stage: str):
        self.recipe, self.path, self.stage = recipe, path, stage
        self.rollout: SamplingSection = getattr(recipe, stage).rollout
        self._loaded: tuple[Engine, Any, Reward] | None = None

    @cached_property
    def drawn(self) -> Row:
        """From which weights its replies are drawn, and how, for the rows of a file."""
        return {"sampling": self._params((), 0).noted(), "weights": weights_version(self.path)}

    def _params(self, stop_ids: tuple[int, ...], seed: int) -> SamplingParams:
        return SamplingParams(
            n=self.rollout.num_generations,
            temperature=self.rollout.temperature,
            top_p=self.rollout.top_p,
            top_k=self.rollout.top_k,
            min_new_tokens=self.rollout.min_completion_length,
            max_new_tokens=self.rollout.max_completion_length,
            stop_token_ids=stop_ids,
            seed=seed,
        )

    def open(self) -> None:
        """Load them, unless they are there. Every rank calls it: they may share vLLM servers."""
        self._loaded = self._loaded or self._load()

    def judged(
        self, prompts: Sequence[Prompt], *, seed: int, greedy: bool = False, most: int | None = None
    ) -> list[list[JudgedReply]]:
        """`num_generations` replies to each prompt as training samples them, or one greedy reply; `most` as of
        `judged_replies`."""
        engine, tokenizer, reward = self._opened
        stops, longest = chat_format(tokenizer).stop_ids, self.rollout.max_completion_length
        params = self._params(stops, seed)
        if greedy:
            params = SamplingParams(temperature=0.0, max_new_tokens=longest, stop_token_ids=stops)
        on_error = getattr(self.recipe, self.stage).on_reward_error
        return judged_replies(engine, tokenizer, prompts, params, [reward], on_error, most)

    def scores(self, replies: Sequence[PromptedReply]) -> list[float]:
        """What the reward says of replies that are there as text; NaN where it failed (`on_reward_error: mask`)."""
        _, _, reward = self._opened
        return judge_replies(reward, replies, getattr(self.recipe, self.stage).on_reward_error)[0].scores

    @property
    def _opened(self) -> tuple[Engine, Any, Reward]:
        assert self._loaded is not None  # somebody opened it
        return self._loaded

    def _load(self) -> tuple[Engine, Any, Reward]:
        from align.models.load import load_causal_lm
        from align.models.tokenizer import recipe_tokenizer
        from align.trainers.engines import sampling_engine

        model = self.recipe.model
        tokenizer = recipe_tokenizer(self.path, model)
        _free_device()  # of the trainer of the round before
        device = common.device()

        def models() -> tuple[Reward, Any]:
            reward = build_reward(self.recipe, tokenizer, stage=self.stage, name=REWARD, device=device)
            policy = load_causal_lm(self.path, model, tokenizer=tokenizer, use="frozen").to(device)
            check_room(policy, self.rollout, self.stage)
            return reward, policy

        reward, policy = agree(models, TrainingError)
        pad, told = tokenizer.pad_token_id or 0, {"ranks": common.ranks()}
        told |= {"seed": derive(self.recipe.seed, self.stage, "engine")}
        return sampling_engine(self.rollout, policy, pad, **told), tokenizer, reward

    def close(self) -> None:
        """Let go of model and reward, whose memory the finetuning needs."""
        if self._loaded is not None:
            self._loaded[0].close()
            self._loaded = None
            _free_device()


def _free_device() -> None:
    """Give back what models that nobody holds any more occupy on the device; they may stand in circles."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def sample_round(sampler: Sampler, prompts: Sequence[Prompt], folder: Path, *, seed: int) -> list[Row]:
    """The rows of `folder/samples.jsonl`, sampled now unless they are there. Every rank calls it.

    Raises:
        RewardError, RolloutError: what went wrong; the pieces that were scored before are kept.
        DataError: the file is damaged, or of other prompts.
        StorageError: the disk is full.
    """

    def sample(number: int, piece: range) -> Iterable[Row]:
        chosen = [prompts[index] for index in piece]
        judged = sampler.judged(chosen, seed=derive(seed, "piece", number))
        return (_row(*one, sampler.rollout) | sampler.drawn for one in zip(chosen, judged, strict=True))

    _in_pieces(folder / FILE, sampler, len(prompts), sample)
    return read_samples(folder / FILE, prompts, sampler.rollout.num_generations)


def earlier_samples(sampler: Sampler, prompts: Sequence[Prompt], sources: Sequence[str], folder: Path) -> list[Row]:
    """The rows of `folder/earlier.jsonl`, one a prompt: what was sampled for it in earlier stages, scored by the reward
    of this one. Every rank calls it; none without sources.

    Args:
        sources: the folders of those stages.

    Raises:
        MissingFileError: one of them holds no samples.
        RewardError, DataError, StorageError: as of `sample_round`.
    """
    if not sources:
        return []
    found = _sampled_before(sources)

    def rescore(number: int, piece: range) -> Iterable[Row]:
        rows = [{"prompt": _turns(prompts[at]), "replies": found.get(_asked(_turns(prompts[at])), [])} for at in piece]
        own = [prompt_columns(prompts[at]) for at in piece]
        replies = [
            PromptedReply(prompts[at].messages, one["content"], prompts[at].tools, columns)
            for at, row, columns in zip(piece, rows, own, strict=True)
            for one in row["replies"]
        ]
        scores = iter(sampler.scores(replies) if replies else ())
        for row in rows:
            scored = [(one, next(scores)) for one in row["replies"]]
            kept = [one | {"score": None if math.isnan(score) else score} for one, score in scored]
            yield row | {"replies": kept}

    _in_pieces(folder / EARLIER, sampler, len(prompts), rescore)
    return read_samples(folder / EARLIER, prompts)


def _sampled_before(sources: Sequence[str]) -> dict[Asked, list[Row]]:
    """What was sampled for each prompt in all rounds of these stages and ended by itself, each text once."""
    found: dict[Asked, dict[str, Row]] = {}
    for source in sources:
        files = sorted(Path(source).glob(f"rounds/*/{FILE}"), key=lambda file: int(file.parent.name))
        if not files:
            raise MissingFileError(f"earlier_from: {source} holds no samples of a rejection stage ({FILE})")
        for row in (row for file in files for row in common.read_rows(file)):
            try:
                known = found.setdefault(_asked(row["prompt"]), {})
                for one in (one for one in row["replies"] if one["stop"] == "end"):
                    known.setdefault(one["content"], {name: one[name] for name in ("content", "stop", "tokens")})
            except (KeyError, TypeError) as error:
                raise DataError(f"{source}: its samples cannot be read ({error})") from None
    return {asked: list(known.values()) for asked, known in found.items()}


def _turns(prompt: Prompt) -> list[Row]:
    return as_row(prompt)["prompt"]


def _asked(turns: Iterable[Row]) -> Asked:
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _in_pieces(file: Path, sampler: Sampler, count: int, make: Callable[[int, range], Iterable[Row]]) -> None:
    """Have `file` made of a row a prompt, unless it is there: the ranks share the pieces. Every rank calls it."""
    cut, folder = pieces(count, sampler.rollout), file.with_name(PIECES)

    def mine() -> None:
        rank, ranks = common.place()
        for number, piece in list(enumerate(cut))[rank::ranks]:
            if not _place(folder, number).is_file():
                common.write_rows(_place(folder, number), make(number, piece))
                common.LOG.info("%s: %d of %d prompts, %s", sampler.stage, piece.stop, count, file.stem)

    barrier()  # all ranks look before any of them writes
    if not file.is_file():
        sampler.open()
        agree(mine, TrainingError)
        if is_main():
            places = (_place(folder, number) for number in range(len(cut)))
            common.write_rows(file, (row for place in places for row in common.read_rows(place)))
            shutil.rmtree(folder, ignore_errors=True)
    barrier()


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number}.jsonl"


def pieces(count: int, rollout: SamplingSection) -> list[range]:
    """The indices of `count` prompts, cut so that a piece holds about `BATCHES_A_PIECE` batches of replies."""
    size = max(1, BATCHES_A_PIECE * rollout.batch_size // rollout.num_generations)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _row(prompt: Prompt, replies: list[JudgedReply], rollout: SamplingSection) -> Row:
    known = [one.row() for one in replies]  # null, not NaN
    scored = tuple(Reply(one.text, row[REWARD]) for one, row in zip(replies, known, strict=True))
    row = as_row(Scored(prompt.messages, scored, prompt.category, prompt.source, (), prompt.tools))
    for entry, one, told in zip(row["replies"], replies, known, strict=True):
        stop = stop_of(one.finished, one.tokens, rollout.max_completion_length)
        entry |= {"stop": stop, "tokens": one.tokens}
        parts = {name.removeprefix(f"{REWARD}/"): told[name] for name in one.scores if name != REWARD}
        entry |= {"parts": parts} if parts else {}
    return row


def read_samples(file: Path, prompts: Sequence[Prompt], count: int | None = None) -> list[Row]:
    """The rows of a file of samples.

    Raises:
        DataError: it cannot be read, or holds other prompts than these or another number of replies than `count` (None:
            as many as there are).
    """
    rows = common.read_rows(file)
    try:
        asked = [[(turn["role"], turn["content"]) for turn in row["prompt"]] for row in rows]
        replies = [[(one["content"], one["score"], one["stop"]) for one in row["replies"]] for row in rows]
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error}): remove it to sample again") from None
    whole = count is None or all(len(row) == count for row in replies)
    if not whole or asked != [[(turn.role, turn.content) for turn in prompt.messages] for prompt in prompts]:
        held = f"it holds {len(rows)} prompts, the data now {len(prompts)}"
        held += "" if count is None else f", with {count} replies each"
        raise DataError(
            f"{file} was sampled for other prompts or another num_generations ({held}): remove it to sample again"
        )
    return rows
