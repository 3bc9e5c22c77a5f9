"""Replies collected for people and judges to compare: k to each prompt, from several models and ways of sampling.

Prompts are drawn balanced over their tags (`align.data.balance`), complex ones first. Each gets its replies from as
many of the sources as it can, drawn anew for each prompt; of near-identical replies one stays, and a prompt whose
replies are all alike is left out, since there is nothing to compare. `items.jsonl` (`align.feedback.items`) has them in
a shuffled order.

One source is loaded at a time. Sampled are whole pieces (`align.runtime.pieces`) whose seeds are made of the recipe's
and the piece's number: a run that was killed goes on behind the last whole piece, and its file is that of one that
never was. What is there and was collected in another way is never overwritten: people may have judged it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.balance import filled_balanced
from align.data.encode import encode_prompts
from align.data.load import load_records
from align.data.variety import Variety
from align.feedback.items import FeedbackItem, FeedbackReply, new_item
from align.models.identity import weights_version
from align.models.named import POLICY_STAGES, called, policy_at, speaks_as
from align.models.tokenizer import load_saved_tokenizer
from align.recipe import Recipe
from align.recipe.collect_section import CollectSection
from align.recipe.lineage import stage_dir
from align.runs.progress import StageProgress
from align.runs.seeding import derive
from align.runtime import files
from align.runtime.errors import AlignError
from align.runtime.json_files import Row
from align.runtime.lock import locked
from align.runtime.made import made_before
from align.runtime.memory import memory_errors
from align.runtime.pieces import Pieces, pieces_in
from data_formats.cleaning.shingles import jaccard, shingles
from data_formats.errors import EmptyDatasetError
from data_formats.records import Prompt
from rollouts.protocol import SamplingParams

if TYPE_CHECKING:
    from align.chat.speaker import Speaker

ITEMS, SUMMARY, PIECES = "items.jsonl", "summary.json", "pieces"
AT_ONCE = 128  # prompts in a piece
NEAR, NGRAM = 0.8, 5  # from which share of their character 5-grams two replies are near-identical


class CollectError(AlignError, ValueError):
    """Replies that cannot be collected, or pairs that cannot be chosen among them."""


@dataclass(frozen=True, slots=True)
class ReplySource:
    """Who replies: a model, how it is sampled, and what identifies its weights."""

    name: str
    path: str
    temperature: float
    top_p: float
    weights: str


@dataclass(frozen=True, slots=True)
class Task:
    """What one piece holds: `number` replies of a source to each of some prompts, by their indices."""

    source: int
    number: int
    prompts: tuple[int, ...]


def collect(recipe: Recipe, section: CollectSection, folder: Path, *, round: int = 0) -> Row:
    """Collect what `section` says into `folder/items.jsonl`, or go on where an earlier call stopped.

    Args:
        recipe: whose seed, data root and stages are meant.
        round: of the loop, noted in each item.

    Returns:
        The summary, also in `folder/summary.json`: `items`, `replies`, what was left out by reason under `dropped`, and
        how the prompts were drawn under `prompts`.

    Raises:
        MissingFileError, ModelFileError, NotAPolicyError: a source is not there, torn, or cannot write.
        DataError: prompts that cannot be read, none that fits, or turns that a model's template has no place for.
        ChatError: a model has no room for a prompt with a reply.
        CollectError: no prompt has two different replies.
        StorageError: the folder holds what was collected in another way, or cannot be written.
        FolderInUseError: another process collects there.
    """
    sources = [_source(recipe, one.model, one.temperature, one.top_p) for one in section.sources]
    prompts, drawn = _draw(recipe, section, sources, round)
    made_with = {
        "sources": [[one.name, one.temperature, one.top_p, one.weights] for one in sources],
        "prompts": _digest(prompts),
        "replies": section.num_replies,
        "lengths": [section.max_prompt_length, section.max_completion_length],
        "engine": section.engine,
        "seed": recipe.seed,
        "round": round,
    }
    with locked(folder, ["collect"]):
        if (done := _done(folder, made_with)) is not None:
            return done
        tasks = _tasks(len(prompts), len(sources), section.num_replies, derive(recipe.seed, "sources", round))
        with pieces_in(folder / PIECES, made_with, command="collect") as pieces:
            _sample(tasks, sources, prompts, section, pieces, derive(recipe.seed, "collect", round))
            replies = _replies(tasks, sources, len(prompts), pieces)
            dropped: Counter[str] = Counter()
            items = _items(prompts, replies, round, derive(recipe.seed, "order", round), dropped)
            if not items:
                raise CollectError("no prompt has two different replies: raise the temperature, or name more sources")
            found: Row = {"items": len(items), "replies": sum(len(one.replies) for one in items)}
            found |= {"dropped": dict(dropped), "prompts": drawn, "made_with": made_with}
            files.write_json(folder / SUMMARY, found)
            files.write_json_lines(folder / ITEMS, (item.row() for item in items))  # last: then the whole is there
    return found


def _source(recipe: Recipe, model: str, temperature: float, top_p: float) -> ReplySource:
    path = policy_at(stage_dir(recipe, model) / "model" if model in POLICY_STAGES else model)
    name = called(model) if Path(model).name == "model" else model
    return ReplySource(name, path, temperature, top_p, weights_version(path))


def _digest(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(repr(prompts).encode(errors="surrogatepass")).hexdigest()[:16]


def _done(folder: Path, made_with: Row) -> Row | None:
    """The summary of what is there already, None where nothing is.

    Raises:
        StorageError: it was collected in another way.
    """

    def refusal(other: str) -> str:
        return (
            f"{folder} holds replies that were collected in another way (other: {other}), and somebody may have judged "
            "them: name another folder with --out, or remove it"
        )

    damaged = f"remove {folder} to collect anew"
    return made_before(folder / ITEMS, folder / SUMMARY, made_with, damaged=damaged, refusal=refusal)


def tags_of(prompt: Prompt) -> tuple[str, ...]:
    """What a prompt is about: its tags, else its category, else nothing."""
    return prompt.tags or ((prompt.category,) if prompt.category else ())


def _draw(
    recipe: Recipe, section: CollectSection, sources: Sequence[ReplySource], round: int
) -> tuple[list[Prompt], Row]:
    """The prompts to reply to, and how they were drawn.

    Raises:
        EmptyDatasetError: none that is short enough.
    """
    records, _ = load_records(section.data, Prompt, recipe)
    different = list({(one.messages, one.tools): one for one in records}.values())
    fitting = different
    for path in dict.fromkeys(one.path for one in sources):
        tokens = encode_prompts(
            load_saved_tokenizer(speaks_as(path)), [one.messages for one in fitting], [one.tools for one in fitting]
        )
        fitting = [one for one, ids in zip(fitting, tokens, strict=True) if len(ids) <= section.max_prompt_length]
        if not fitting:
            raise EmptyDatasetError(
                f"collect.data: no prompt of at most collect.max_prompt_length ({section.max_prompt_length}) tokens; "
                "raise it"
            )
    tags = [tags_of(one) for one in fitting]
    count = section.num_prompts or len(fitting)
    taken = filled_balanced(tags, count, derive(recipe.seed, "prompts", round))
    drawn = {"read": len(records), "different": len(different), "fitting": len(fitting), "drawn": len(taken)}
    drawn |= {f"{name} of all": value for name, value in _variety(tags).items()}
    return [fitting[at] for at in taken], drawn | _variety([tags[at] for at in taken])


def _variety(tags: Sequence[Sequence[str]]) -> Row:
    """Diversity, the number of different tags, and complexity, their mean number a prompt."""
    found = Variety(tags)
    return {"tags": found.diversity, "tags a prompt": round(found.complexity, 3)}


def _tasks(prompts: int, sources: int, replies: int, seed: int) -> list[Task]:
    """Who replies to what: a prompt's replies come from sources in an order of its own, each as often as any other or
    once more."""
    asked: dict[tuple[int, int], list[int]] = {}
    for prompt in range(prompts):
        order = list(range(sources))
        random.Random(f"{seed}/{prompt}").shuffle(order)
        for source, number in Counter(order[at % sources] for at in range(replies)).items():
            asked.setdefault((source, number), []).append(prompt)
    return [
        Task(source, number, tuple(own[start : start + AT_ONCE]))
        for (source, number), own in sorted(asked.items())
        for start in range(0, len(own), AT_ONCE)
    ]


def _sample(
    tasks: Sequence[Task],
    sources: Sequence[ReplySource],
    prompts: Sequence[Prompt],
    section: CollectSection,
    pieces: Pieces,
    seed: int,
) -> None:
    """Make the pieces that are not there. A source is loaded when one of its own is wanted, and closed before the next
    source."""
    from align.chat.speaker import Speaker

    most, done = section.max_completion_length, 0
    with StageProgress("replies", sum(task.number * len(task.prompts) for task in tasks)) as progress:
        for at, own in groupby(enumerate(tasks), key=lambda one: one[1].source):
            source = sources[at]
            lower = ("collect.max_completion_length", "collect.num_replies")
            with memory_errors(source.name, *lower), ExitStack() as held:
                said = {"engine": section.engine, "temperature": source.temperature}
                model = partial(Speaker, source.path, source.name, **said)
                speaker = cache(lambda held=held, model=model: held.enter_context(closing(model())))
                for number, task in own:
                    how = {"temperature": source.temperature, "top_p": source.top_p, "max_new_tokens": most}
                    params = SamplingParams(n=task.number, seed=derive(seed, number), **how)
                    pieces.make(number, partial(_sampled, speaker, params, prompts, task.prompts))
                    done += task.number * len(task.prompts)
                    progress.update(done)


def _sampled(
    speaker: Callable[[], Speaker], params: SamplingParams, prompts: Sequence[Prompt], indices: Sequence[int]
) -> Iterator[Row]:
    """A line a reply: which prompt it is to, its text, and how it was sampled."""
    from align.evaluation.replies import judged_replies

    one, asked = speaker(), [prompts[at] for at in indices]
    encoded = one.encode([prompt.messages for prompt in asked], [prompt.tools for prompt in asked])
    params = one.params(params, max(map(len, encoded)))
    how = {"temperature": params.temperature, "top_p": params.top_p}
    how |= {"max_tokens": params.max_new_tokens, "seed": params.seed}
    for at, replies in zip(indices, judged_replies(one.engine, one.tokenizer, asked, params, ()), strict=True):
        for reply in replies:
            yield {"prompt": at, "reply": reply.text, "sampling": how}


def _replies(
    tasks: Sequence[Task], sources: Sequence[ReplySource], prompts: int, pieces: Pieces
) -> list[list[FeedbackReply]]:
    """The replies to each prompt, source after source."""
    found: list[list[FeedbackReply]] = [[] for _ in range(prompts)]
    by = [sources[task.source] for task in tasks for _ in range(task.number * len(task.prompts))]
    for source, row in zip(by, pieces.rows(len(tasks)), strict=True):
        reply = FeedbackReply("", row["reply"], source.name, row["sampling"], source.weights)
        found[row["prompt"]].append(reply)
    return found


def _items(
    prompts: Sequence[Prompt],
    replies: Sequence[list[FeedbackReply]],
    round: int,
    seed: int,
    dropped: Counter[str],
) -> list[FeedbackItem]:
    """An item of each prompt with two replies to compare; `dropped` counts what is left out."""
    items = []
    for at, (prompt, own) in enumerate(zip(prompts, replies, strict=True)):
        random.Random(f"{seed}/{at}").shuffle(own)  # or the first source would be the one that stays
        kept = different(own, dropped)
        if len(kept) < 2:
            dropped["prompts without two different replies"] += 1
            continue
        items.append(new_item(prompt, kept, tags=tags_of(prompt), round=round, seed=seed))
    return items


def different(replies: Sequence[FeedbackReply], dropped: Counter[str]) -> list[FeedbackReply]:
    """The replies with text, without those that are nearly one before them (`NEAR`)."""
    kept: list[tuple[FeedbackReply, Any]] = []
    for reply in replies:
        own = shingles(reply.reply, NGRAM, "char")
        if not len(own):
            dropped["replies without text"] += 1
        elif any(jaccard(own, other) >= NEAR for _, other in kept):
            dropped["near-identical replies"] += 1
        else:
            kept.append((reply, own))
    return [reply for reply, _ in kept]
