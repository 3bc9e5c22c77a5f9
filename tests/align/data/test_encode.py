"""Records -> ids and labels, checked against hand-laid sequences of a byte tokenizer."""

import pytest

from align.data.encode import (
    NO_LOSS,
    encode_comparisons,
    encode_demonstrations,
    encode_documents,
    encode_kept_comparisons,
    encode_kept_demonstrations,
    encode_prompt,
    encode_prompts,
    encode_replies,
    encode_reply,
)
from align.data.packing import PackedRows
from align.data.pairs import encode_groups, make_groups, plain_groups
from data_formats import Comparison, DataError, Demonstration, Document, Message
from tests.qwen_tokenizers import qwen
from tests.tiny_models import byte_tokenizer

U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))
START, END, TEXT_END = 257, 258, 256


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def encode_demonstration(tokenizer, demo, max_length, on_overlong, **options):
    rows, _ = encode_demonstrations(tokenizer, [demo], max_length, on_overlong, **options)
    return rows[0] if rows else None


def spell(tokenizer, text):
    """Ids of ASCII text, letter by letter."""
    return [tokenizer.convert_tokens_to_ids({"\n": "Ċ", " ": "Ġ"}.get(letter, letter)) for letter in text]


def turn(tokenizer, role, text):
    return [START, *spell(tokenizer, f"{role}\n{text}"), END, *spell(tokenizer, "\n")]


def test_labels_are_the_reply_and_its_end(tokenizer):
    demo = Demonstration((U("q"), A("yes"), U("p"), A("no")))
    row = encode_demonstration(tokenizer, demo, 1000, "drop")
    first = turn(tokenizer, "user", "q") + turn(tokenizer, "assistant", "yes")
    second = turn(tokenizer, "user", "p") + turn(tokenizer, "assistant", "no")
    assert row["input_ids"] == first + second
    head = len(turn(tokenizer, "user", "q")) + 1 + len("assistant\n")
    expected = (
        [NO_LOSS] * head + [*spell(tokenizer, "yes"), END] + [NO_LOSS] * (1 + head) + [*spell(tokenizer, "no"), END]
    )
    assert row["labels"] == [*expected, NO_LOSS]
    assert row["labels"][0] == NO_LOSS


def test_a_lookalike_in_user_text_is_spelled_out(tokenizer):
    row = encode_demonstration(tokenizer, Demonstration((U("<|im_end|>"), A("x"))), 1000, "drop")
    assert row["input_ids"] == turn(tokenizer, "user", "<|im_end|>") + turn(tokenizer, "assistant", "x")
    assert row["input_ids"].count(END) == 2


def test_turns_number_the_exchange_of_every_label(tokenizer):
    demo = Demonstration((S("s"), U("q"), A("yes"), U("p"), A("no")))
    row = encode_demonstration(tokenizer, demo, 1000, "drop")
    assert all((turn > 0) == (label != NO_LOSS) for turn, label in zip(row["turns"], row["labels"], strict=True))
    assert [turn for turn in row["turns"] if turn] == [1] * len("yes.") + [2] * len("no.")
    last = encode_demonstration(tokenizer, demo, 1000, "drop", mask="last_turn_only")
    assert [turn for turn in last["turns"] if turn] == [2] * len("no.")
    assert [label for label in last["labels"] if label != NO_LOSS] == [*spell(tokenizer, "no"), END]


def test_overlong_demonstrations_drop_truncate_or_stop(tokenizer):
    old, last = (U("old" * 9), A("reply")), (U("q"), A("y"))
    long, short = Demonstration((S("s"), *old, *last)), Demonstration((S("s"), *last))
    (expected,), _ = encode_demonstrations(tokenizer, [short], 1000, "error")
    limit = len(expected["input_ids"])
    assert encode_demonstrations(tokenizer, [long, short], limit, "drop") == ([expected], {"longer than max_length": 1})
    # whole turns go on the left; the system turn and the last exchange stay
    assert encode_demonstrations(tokenizer, [long], limit, "truncate") == ([expected], {"truncated": 1})
    assert encode_demonstrations(tokenizer, [long], limit - 1, "truncate") == ([], {"longer than max_length": 1})
    with pytest.raises(DataError, match=f"demonstration 0 has [0-9]+ tokens but max_length is {limit}"):
        encode_demonstrations(tokenizer, [long], limit, "error")


def test_no_more_turns_go_than_must(tokenizer):
    exchanges = [(U("q" * n), A("y")) for n in (9, 1, 2)]
    demo = Demonstration(tuple(turn for exchange in exchanges for turn in exchange))
    kept = Demonstration((*exchanges[1], *exchanges[2]))
    expected = encode_demonstration(tokenizer, kept, 1000, "error")
    assert encode_demonstration(tokenizer, demo, len(expected["input_ids"]), "truncate") == expected


def test_turns_that_nothing_answers_go_before_the_reply(tokenizer):
    answered = (U("q"), A("y"))
    (expected,), _ = encode_demonstrations(tokenizer, [Demonstration(answered)], 1000, "error")
    limit = len(expected["input_ids"])
    open_ended = Demonstration((U("old" * 9), A("reply"), *answered, U("and then" * 9)))
    assert encode_demonstrations(tokenizer, [open_ended], limit, "truncate") == ([expected], {"truncated": 1})
    last = turn(tokenizer, "user", "and then" * 9)  # it stays where there is room
    assert encode_demonstration(tokenizer, open_ended, 1000, "truncate")["input_ids"][-len(last) :] == last


def test_an_empty_conversation_with_tools_is_named_and_not_an_index_error(tokenizer):
    empty = Demonstration((), tools=('{"name": "f"}',))
    with pytest.raises(DataError, match="demonstration 0 has no token with loss"):
        encode_demonstrations(tokenizer, [empty], 9999, "truncate")
    assert encode_demonstrations(tokenizer, [empty], 9, "truncate") == ([], {"longer than max_length": 1})


@pytest.mark.parametrize("on_overlong", ["drop", "truncate", "error"])
def test_a_sample_without_loss_is_an_error_that_names_it(tokenizer, on_overlong):
    demos = [Demonstration((U("q"), A("y"))), Demonstration((U("q"),), source="notes.jsonl")]
    with pytest.raises(DataError, match=r"notes.jsonl: demonstration 1 has no token with loss \(mask assistant_only\)"):
        encode_demonstrations(tokenizer, demos, 99, on_overlong)


def test_the_template_gives_its_default_system_turn_when_asked(tokenizer):
    qwen2 = qwen("2")
    bare, given = (U("two"), A("one")), S("You are a helpful assistant.")
    by_default = encode_demonstration(qwen2, Demonstration(bare), 1000, "error", default_system="template")
    assert by_default == encode_demonstration(qwen2, Demonstration((given, *bare)), 1000, "error")
    own = Demonstration((S("s"), *bare))
    assert encode_demonstration(qwen2, own, 1000, "error", default_system="template") == encode_demonstration(
        qwen2, own, 1000, "error"
    )
    with pytest.raises(DataError, match="set default_system to none"):
        encode_demonstrations(tokenizer, [own], 1000, "error", default_system="template")


def test_thoughts_written_into_a_reply_are_thoughts():
    qwen3 = qwen("3")
    written = Demonstration((U("two"), A("<think>\nit is\n</think>\n\none")))
    named = Demonstration((U("two"), Message("assistant", "one", reasoning="it is")))
    for thinking in ("keep", "drop", "template"):
        rows = [encode_demonstration(qwen3, demo, 1000, "error", thinking=thinking) for demo in (written, named)]
        assert rows[0] == rows[1]
        assert (qwen3.convert_tokens_to_ids("<think>") in rows[0]["labels"]) == (thinking != "drop")


def test_tools_on_offer_stand_in_prompts_and_comparisons(tokenizer):
    tool, asked = '{"name": "f"}', (U("q"),)
    prompt = encode_prompt(tokenizer, asked, (tool,))
    assert '<tools>\n{"name": "f"}\n</tools>' in tokenizer.decode(prompt)
    (row,), _ = encode_comparisons(tokenizer, [Comparison(asked, "good", "bad", tools=(tool,))], 9999, "error")
    assert row["chosen_ids"] == prompt + encode_reply(tokenizer, "good")


def test_prompt_and_reply_join_to_the_demonstration(tokenizer):
    prompt, reply = (S("s"), U("q")), "answer <|im_start|>"
    whole = encode_demonstration(tokenizer, Demonstration((*prompt, A(reply))), 1000, "error")["input_ids"]
    assert encode_prompt(tokenizer, prompt) + encode_reply(tokenizer, reply) + spell(tokenizer, "\n") == whole
    assert encode_prompts(tokenizer, [prompt, prompt]) == [encode_prompt(tokenizer, prompt)] * 2
    assert encode_replies(tokenizer, ["", "a"]) == [[END], [*spell(tokenizer, "a"), END]]


def test_comparisons_end_at_the_end_token_and_share_the_prompt(tokenizer):
    rows, counts = encode_comparisons(tokenizer, [Comparison((U("q"),), "good", "bad")], 1000, "drop")
    prompt = [*turn(tokenizer, "user", "q"), START, *spell(tokenizer, "assistant\n")]
    expected = {
        "chosen_ids": [*prompt, *spell(tokenizer, "good"), END],
        "rejected_ids": [*prompt, *spell(tokenizer, "bad"), END],
    }
    assert (rows, counts) == ([expected], {})


def test_truncated_comparisons_lose_whole_old_exchanges_on_both_sides(tokenizer):
    old, last = (U("old" * 5), A("reply" * 5)), U("q")
    pair = Comparison((S("s"), *old, last), "good", "bad")
    kept = Comparison((S("s"), last), "good", "bad")
    expected, _ = encode_comparisons(tokenizer, [kept], 1000, "error")
    limit = len(expected[0]["chosen_ids"])
    assert encode_comparisons(tokenizer, [pair], limit, "truncate") == (expected, {"truncated": 1})
    assert encode_comparisons(tokenizer, [pair], limit - 1, "truncate") == ([], {"longer than max_length": 1})
    assert encode_comparisons(tokenizer, [pair], limit, "drop") == ([], {"longer than max_length": 1})
    with pytest.raises(DataError, match=f"comparison 0 has .* tokens but max_length is {limit}"):
        encode_comparisons(tokenizer, [pair], limit, "error")


def test_kept_comparisons_name_the_ones_they_were_made_from(tokenizer):
    pairs = [Comparison((U(prompt),), "good", "bad") for prompt in ("a", "long" * 20, "b", "long" * 20, "c")]
    limit = len(encode_prompt(tokenizer, pairs[0].prompt)) + len(encode_reply(tokenizer, "good"))
    rows, kept, counts = encode_kept_comparisons(tokenizer, pairs, limit, "drop")
    assert (kept, counts) == ([0, 2, 4], {"longer than max_length": 2})
    assert rows == encode_comparisons(tokenizer, [pairs[0], pairs[2], pairs[4]], limit, "error")[0]


def test_documents_are_joined_by_end_of_text_and_cut(tokenizer):
    blocks = encode_documents(tokenizer, [Document("abcdefgh"), Document("ijk <|endoftext|>")], 9)
    stream = [*spell(tokenizer, "abcdefgh"), TEXT_END, *spell(tokenizer, "ijk <|endoftext|>"), TEXT_END]
    assert blocks == [stream[:9], stream[9:18], stream[18:]]
    assert len(blocks[2]) == 9


@pytest.mark.parametrize(("letters", "lengths"), [(16, [9, 8]), (15, [9]), (17, [9, 9]), (8, [9]), (3, [])])
def test_a_last_block_below_eight_tokens_is_left_out(tokenizer, letters, lengths):
    assert [len(block) for block in encode_documents(tokenizer, [Document("a" * letters)], 9)] == lengths


def test_whole_conversations_that_part_are_compared_as_they_are(tokenizer):
    """Each side's ids are those of its own conversation, from the prompt that both share."""
    ask, more = Message("user", "q"), Message("user", "p")
    sides = [(Message("assistant", "one"), more), (Message("assistant", "two"), more)]
    pair = Comparison((ask,), "a", "a", chosen_turns=sides[0], rejected_turns=sides[1])
    whole = [Comparison((ask, *side), "a", "b") for side in sides]
    expected = [row["chosen_ids"] for row in encode_comparisons(tokenizer, whole, 500, "drop")[0]]
    (row,), _ = encode_comparisons(tokenizer, [pair], 500, "drop")
    assert [row["chosen_ids"], row["rejected_ids"]] == expected
    said = [tokenizer.decode(row[side]) for side in ("chosen_ids", "rejected_ids")]
    assert "one" in said[0] and "two" in said[1] and "one" not in said[1]
    for groups in (make_groups([pair])[0], plain_groups([pair]), make_groups([pair], join=True)[0]):
        (encoded,), _, _ = encode_groups(tokenizer, groups, 500, "drop")
        assert [encoded["prompt_ids"] + reply for reply in encoded["reply_ids"]] == expected


UNTRAINED = Message("assistant", "five", loss=False)


@pytest.mark.parametrize("mask", ["assistant_only", "user_content_only", "qwen_script", "all"])
def test_a_turn_without_loss_has_no_label_under_any_mask(tokenizer, mask):
    demo = Demonstration((U("q"), UNTRAINED, U("p"), A("no")))
    row = encode_demonstration(tokenizer, demo, 1000, "drop", mask=mask)
    start = len(turn(tokenizer, "user", "q"))
    end = start + len(turn(tokenizer, "assistant", "five"))
    assert row["labels"][start:end] == [NO_LOSS] * (end - start) and not any(row["turns"][start:end])
    whole = encode_demonstration(
        tokenizer, Demonstration((U("q"), A("five"), U("p"), A("no"))), 1000, "drop", mask=mask
    )
    assert row["input_ids"] == whole["input_ids"]
    assert row["labels"][:start] + row["labels"][end:] == whole["labels"][:start] + whole["labels"][end:]


def test_packed_rows_keep_turns_without_loss_without_it(tokenizer):
    demos = [Demonstration((U("q"), UNTRAINED, U("p"), A("no"))), Demonstration((U("a"), A("b")))]
    rows, _ = encode_demonstrations(tokenizer, demos, 1000, "drop")
    packed = PackedRows(rows, max_length=1000)[0]
    learnt = [label for label in packed["labels"] if label != NO_LOSS]
    assert learnt == [*spell(tokenizer, "no"), END, *spell(tokenizer, "b"), END]


def test_where_the_mask_leaves_no_turn_with_loss_the_row_is_dropped_and_counted(tokenizer):
    demo = Demonstration((U("q"), A("no"), U("p"), UNTRAINED))
    rows, kept, counts = encode_kept_demonstrations(tokenizer, [demo], 1000, "drop", mask="last_turn_only")
    assert (rows, kept, counts) == ([], [], {"no turn with loss": 1})
    longest = len(encode_demonstration(tokenizer, demo, 1000, "drop")["input_ids"])
    (row,), counts = encode_demonstrations(
        tokenizer, [demo], longest - 1, "truncate"
    )  # turns after the last trained go
    assert row["input_ids"] == turn(tokenizer, "user", "q") + turn(tokenizer, "assistant", "no")
    assert counts == {"truncated": 1}
    demo = Demonstration((U("q" * 50), UNTRAINED, U("p"), A("yes")))
    assert encode_demonstrations(tokenizer, [demo], 40, "truncate")[1] == {"truncated": 1}


@pytest.mark.parametrize("name", ["byte", "qwen3"])
def test_replies_to_compare_are_encoded_as_the_reply_of_a_demonstration(tokenizer, name):
    """Also where the tokenizer has tokens for the marks of thinking; written apart and written into the reply."""
    tokenizer = tokenizer if name == "byte" else qwen("3")
    prompt, reasoning = (U("17*3?"),), "17*3 = 51"
    demo = Demonstration((*prompt, Message("assistant", "51", reasoning)))
    whole = encode_demonstration(tokenizer, demo, 1000, "drop")["input_ids"]
    newline = encode_demonstration(tokenizer, Demonstration((*prompt, A("51"))), 1000, "drop")["input_ids"][-1:]
    pairs = [
        Comparison(prompt, "51", "51", chosen_reasoning=reasoning, rejected_reasoning="I guess"),
        Comparison(prompt, f"<think>\n{reasoning}\n</think>\n\n51", "51"),
    ]
    (apart, inside), counts = encode_comparisons(tokenizer, pairs, 1000, "drop")
    assert apart["chosen_ids"] + newline == inside["chosen_ids"] + newline == whole
    assert apart["rejected_ids"] != apart["chosen_ids"] and not counts
    groups, _ = make_groups(pairs)
    rows, _, _ = encode_groups(tokenizer, groups, 1000, "drop")
    assert [[row["prompt_ids"] + ids for ids in row["reply_ids"]] for row in rows] == [
        [pair["chosen_ids"], pair["rejected_ids"]] for pair in (apart, inside)
    ]
