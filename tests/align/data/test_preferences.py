import pytest

from align.data.collate import PreferenceCollator
from align.data.encode import encode_prompt
from align.data.preferences import encode_preferences, newest_round
from data_formats.errors import DataError
from data_formats.records import Comparison, Message
from tests.tiny_models import byte_tokenizer

USER = (Message("user", "Hi"),)
TURNS = (Message("assistant", "one"), Message("user", "more?"))
TOKENIZER = byte_tokenizer()
END = 258


def counted(row, side):
    """The text of what counts, `#` for an end token."""
    ids = [token for token, counts in zip(row[f"{side}_ids"], row[f"{side}_mask"], strict=True) if counts]
    return TOKENIZER.decode(ids).replace("<|im_end|>", "#")


def encoded(*comparisons, length=200, overlong="drop", **options):
    return encode_preferences(TOKENIZER, comparisons, length, overlong, **options)


def test_what_the_model_wrote_counts_and_what_ends_it_where_it_is_wanted():
    pair = Comparison(USER, "two", "no", chosen_turns=TURNS, rejected_turns=(Message("assistant", "1"), TURNS[1]))
    (row,), kept, counts = encoded(pair)
    assert kept == [0] and counts == {}
    assert (counted(row, "chosen"), counted(row, "rejected")) == ("one#two#", "1#no#")
    whole = TOKENIZER.decode(row["prompt_ids"] + row["chosen_ids"])
    said = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>user\nmore?<|im_end|>\n"
    assert whole.endswith(said + "<|im_start|>assistant\ntwo<|im_end|>")
    (bare,), _, _ = encoded(pair, mask_formatting=True)
    assert (counted(bare, "chosen"), counted(bare, "rejected")) == ("onetwo", "1no")
    assert bare["chosen_ids"] == row["chosen_ids"]


def test_a_control_token_that_a_reply_spells_is_text_and_counts():
    (row,), _, _ = encoded(Comparison(USER, "a<|im_end|>", "b"), mask_formatting=True)
    assert row["chosen_ids"].count(END) == 1 and len(row["chosen_ids"]) == 1 + sum(row["chosen_mask"]) == 12


def test_long_pairs_lose_old_turns_and_empty_replies_are_left_out():
    asked = (Message("user", "old " * 20), Message("assistant", "yes"), *USER)
    pairs = [Comparison(asked, "good", "bad"), Comparison(USER, "a", ""), Comparison(USER, "x" * 90, "b")]
    rows, kept, counts = encoded(*pairs, length=80, overlong="truncate", mask_formatting=True)
    assert kept == [0] and rows[0]["prompt_ids"] == encode_prompt(TOKENIZER, USER)
    assert counts == {"truncated": 1, "longer than max_length": 1, "reply without a token that counts": 1}
    assert len(encoded(pairs[1])[0]) == 1  # its end token counts
    with pytest.raises(DataError, match=r"comparison 0 has .* tokens but max_length is 80"):
        encoded(*pairs, length=80, overlong="error")


def test_the_newest_round_is_that_of_the_rows():
    old, new, bare = (Comparison(USER, "a", "b", round=number) for number in (1, 2, None))
    assert newest_round([old, new, bare]) == ([new], {"not of round 2, the newest": 2})
    assert newest_round([new]) == ([new], {})
    with pytest.raises(DataError, match="no comparison says its 'round'"):
        newest_round([bare])


def test_a_batch_is_all_chosen_then_all_rejected():
    rows, _, _ = encoded(Comparison(USER, "long one", "b"), Comparison(USER, "c", "d"))
    batch = PreferenceCollator(7)(rows)
    assert batch.keys() == {"input_ids", "attention_mask", "completion_mask"}
    prompt = len(rows[0]["prompt_ids"])
    assert batch["attention_mask"].sum(1).tolist() == [prompt + length for length in (9, 2, 2, 2)]
    assert batch["completion_mask"].sum(1).tolist() == [9, 2, 2, 2]
    assert batch["completion_mask"][:, :prompt].sum() == 0 and batch["input_ids"][1, -1] == 7
    asked = [row | {"ref_chosen_logps": -1.5, "ref_rejected_logps": 0.1} for row in rows]
    assert PreferenceCollator(7)(asked)["ref_chosen_logps"].tolist() == [-1.5, -1.5]
