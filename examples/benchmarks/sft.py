"""Tokens with loss a second of supervised finetuning beside `trl.SFTTrainer`, unpacked and packed.

    python examples/benchmarks/sft.py [--cases plain packed] [--rounds 5] [--out FOLDER]

Both learn from the same multi-turn chats of very mixed length with loss on the replies (the ids and masks are the same,
which a test holds), with the same model (float32), optimizer and step. A turn is an epoch. `plain`: steps of eight rows
of like length, the best that each has without packing. `packed`: rows of 1,024 tokens, as many to a step as come near
the same number of tokens; TRL packs without padding (`bfd`), and on a CPU, where it has no flash attention, it warns
that its samples may see one another, which ours never do.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import measuring
import small_models
from measuring import Case, Turns

SIZES = {"vocab": 2048, "width": 256, "layers": 6, "chats": 96, "rows": 8, "max_length": 1024}
CASES = {
    "plain": {**SIZES, "words": "96 chats of 1–4 exchanges", "packing": False},
    "packed": {**SIZES, "words": "the same, packed", "packing": True},
}
TINY = {"vocab": 64, "width": 32, "layers": 1, "chats": 4, "rows": 2, "max_length": 384}
LONGEST_TURN = 40  # words


def chats(case: Case) -> list[list[dict[str, str]]]:
    """Chats of 1 to 4 exchanges, each turn of 1 to 40 words."""
    rng = random.Random(0)
    turns = [("user", "assistant") * rng.randint(1, 4) for _ in range(case["chats"])]

    def said() -> str:
        return small_models.words_of(rng.randint(1, LONGEST_TURN), case["vocab"], rng)

    return [[{"role": role, "content": said()} for role in roles] for roles in turns]


def encoded(case: Case) -> list[dict[str, Any]]:
    """Our rows."""
    from align.data.encode import encode_demonstrations
    from data_formats.records import Demonstration, Message

    records = [Demonstration(tuple(Message(**turn) for turn in chat)) for chat in chats(case)]
    return encode_demonstrations(small_models.tokenizer(case["vocab"]), records, case["max_length"], "error")[0]


def arguments(case: Case) -> dict[str, Any]:
    """What the arguments of both trainers have in common."""
    mean = sum(len(row["input_ids"]) for row in encoded(case)) / case["chats"]
    packs = max(1, round(case["rows"] * mean / case["max_length"]))
    common = small_models.trainer_arguments(packs if case["packing"] else case["rows"], 1e-4)
    return common | {"dataloader_pin_memory": False}


def run(kind: type, case: Case, turns: Turns, **given: Any) -> None:
    """Train, an epoch a turn; the tokens with loss are those that the trainer counts."""

    class Counting(kind):
        tokens = 0

        def _get_num_items_in_batch(self, *args: Any) -> Any:
            items = super()._get_num_items_in_batch(*args)
            self.tokens += int(items)
            return items

    def items() -> int:
        counted, trainer.tokens = trainer.tokens, 0
        return counted

    model = small_models.make("Qwen2ForCausalLM", case)
    callback = turns.callback(ends="on_epoch_end", items=items)
    names = small_models.tokenizer(case["vocab"])
    trainer = Counting(model=model, processing_class=names, callbacks=[callback], **given)
    trainer.train()


def align(case: Case, turns: Turns) -> None:
    """`align.SFTTrainer`."""
    from transformers import TrainingArguments

    from align import SFTTrainer

    packed = {"packing": True, "max_length": case["max_length"]}
    how = packed if case["packing"] else {"group_by_length": True}
    run(SFTTrainer, case, turns, args=TrainingArguments(**arguments(case)), train_dataset=encoded(case), **how)


def trl(case: Case, turns: Turns) -> None:
    """`trl.SFTTrainer`, the version that align is installed with."""
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    how = {"packing": True} if case["packing"] else {"train_sampling_strategy": "group_by_length"}
    args = SFTConfig(**arguments(case), **how, assistant_only_loss=True, max_length=case["max_length"])
    run(SFTTrainer, case, turns, args=args, train_dataset=Dataset.from_dict({"messages": chats(case)}))


SIDES = {"align": align, "trl": trl}


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    measuring.program(__file__, __doc__, SIDES, CASES, unit="tokens", tiny=TINY, argv=argv)


if __name__ == "__main__":
    main(sys.argv[1:])
