"""Scoring several replies to one prompt with the prompt computed once: which go together, and how they are laid."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial

from torch import Tensor, nn

from reward.flat import flat_batch, takes_flat_rows
from reward.layout import TokenGroup, tree_batch, tree_problem
from reward.model import RewardModel
from reward.scoring import batches_by_length

Layout = Callable[[Sequence[TokenGroup]], dict[str, Tensor]]


def layout_for(model: nn.Module, pad_id: int, share_prompts: bool | None) -> Layout | None:
    """How groups are laid in rows for a model; None: it scores every reply apart.

    Args:
        share_prompts: False: apart; None: where the backbone takes flat rows; True: in padded ones too.
    """
    if share_prompts is False or not isinstance(model, RewardModel):
        return None
    if takes_flat(model):
        return flat_batch
    if share_prompts and tree_problem(model.config, model._accepted) is None:
        return partial(tree_batch, pad_id=pad_id)
    return None


def takes_flat(model: RewardModel) -> bool:
    """Whether `flat_batch`es are scored as every reply apart is (`reward.flat`)."""
    names = ("input_ids", "attention_mask", "position_ids", "parts")
    training = model.training
    model.eval()
    try:
        return takes_flat_rows(model, model.backbone, lambda inputs: model.states(*map(inputs.get, names)))
    finally:
        model.train(training)


def same_prompts(prompts: Sequence[Hashable], most: int) -> tuple[list[list[int]], list[int]]:
    """(Groups of 2 to `most` indices whose prompts are equal, indices left over); a prompt None is like no other."""
    found: dict[Hashable, list[int]] = {}
    for index, prompt in enumerate(prompts):
        found.setdefault((prompt,) if prompt else index, []).append(index)
    pieces = [group[at : at + most] for group in found.values() for at in range(0, len(group), most)]
    return [piece for piece in pieces if len(piece) > 1], [piece[0] for piece in pieces if len(piece) == 1]


def group_batches(
    groups: Sequence[Sequence[int]], cuts: Sequence[int], rows: Sequence[Sequence[int]], most: int, layout: Layout
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(Indices of rows in the order of the scores, what the model takes); at most about `most` rows at once.

    Args:
        groups: indices of rows that begin with the same prompt.
        cuts: the length of each group's prompt.
        rows: ids of prompt and reply.
    """
    largest = max(map(len, groups), default=1)
    lengths = [sum(len(rows[index]) for index in group) for group in groups]
    for batch in batches_by_length(lengths, max(most // largest, 1)):
        laid = [
            TokenGroup(rows[groups[at][0]][: cuts[at]], [rows[index][cuts[at] :] for index in groups[at]])
            for at in batch
        ]
        inputs = layout(laid)
        del inputs["starts"]
        yield [index for at in batch for index in groups[at]], inputs
