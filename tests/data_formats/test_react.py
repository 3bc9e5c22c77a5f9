"""ReAct text: what the model writes has loss, what a tool answered has none."""

import pytest

from align.data.encode import encode_demonstrations
from data_formats.chatml import Piece
from data_formats.react import observations, without_observations
from data_formats.reading import read
from data_formats.records import Demonstration, Message
from tests.qwen_tokenizers import qwen

REPLY = """Thought: I need the weather.
Action: weather
Action Input: {"city": "Ulm"}
Observation: rain,
 and one more line: Thought: not here
Thought: I now know.
Action: sum
Action Input: 1 + 1
Observation:
2
Thought: Done.
Final Answer: It rains, and 2."""
ANSWERS = [" rain,\n and one more line: Thought: not here\n", "2\n"]


def cut(text):
    return [text[start:end] for start, end in observations(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (REPLY, ANSWERS),
        ("Action Input: x\nObservation: cut off", [" cut off"]),
        ("Action Input: x\nObservation:", []),  # where the model stops and the tool is called
        ("Action Input: x\nObservation:\nThought: nothing came back", []),
        ("Observation: the sky is blue.\nThought: fine", []),  # nobody called a tool
        ("I say Action Input: x\nObservation: y", []),
        ("Action Input: x\nThought: no\nObservation: z\nFinal Answer: w", [" z\n"]),
        ("", []),
    ],
)
def test_what_a_tool_answered(text, found):
    assert cut(text) == found


def test_an_endless_reply_takes_linear_time():
    assert observations("Action Input: x\n" * 200_000) == []


@pytest.mark.parametrize("release", ["1.5", "2.5", "3"])
def test_ids_stay_those_of_the_whole_reply_and_labels_are_what_the_model_writes(release):
    tokenizer = qwen(release)
    demo = Demonstration((Message("user", "Is it raining in Ulm?"), Message("assistant", REPLY)))
    (plain,), _ = encode_demonstrations(tokenizer, [demo], 10_000, "error")
    (masked,), _ = encode_demonstrations(tokenizer, [demo], 10_000, "error", mask_observations=True)
    assert masked["input_ids"] == plain["input_ids"]
    labels = [label if label != -100 else None for label in masked["labels"]]
    written = tokenizer.decode([label for label in labels if label is not None])
    for answer in ANSWERS:
        assert REPLY.count(answer) == 1
    first, second, third = REPLY.replace(ANSWERS[0], "\0").replace("Observation:\n2\n", "Observation:\n\0").split("\0")
    assert written == first + second + third + "<|im_end|>"
    assert first.endswith("Observation:") and second.endswith("Observation:\n") and third.startswith("Thought: Done.")
    hidden = [
        id_ for id_, old, new in zip(plain["input_ids"], plain["labels"], masked["labels"], strict=True) if old != new
    ]
    assert tokenizer.decode(hidden) == "".join(ANSWERS)


def test_answers_in_turns_of_their_own_have_no_loss_and_calls_have(tmp_path):
    """The other shape of agent data, as the readers give it, under the default mask."""
    file = tmp_path / "tools.jsonl"
    file.write_text(
        '{"conversations": [{"from": "human", "value": "Rain in Ulm?"}, {"from": "function_call", "value": '
        '"{\\"name\\": \\"weather\\", \\"arguments\\": {\\"city\\": \\"Ulm\\"}}"}, {"from": "observation", "value": '
        '"it rains"}, {"from": "gpt", "value": "Yes."}], "tools": "[{\\"name\\": \\"weather\\", \\"description\\": '
        '\\"looks\\", \\"parameters\\": {\\"type\\": \\"object\\"}}]"}\n'
    )
    (demo,) = read(file, Demonstration).records
    tokenizer = qwen("2.5")
    (row,), _ = encode_demonstrations(tokenizer, [demo], 10_000, "error", mask_observations=True)
    written = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert '"arguments": {"city": "Ulm"}' in written and written.endswith("Yes.<|im_end|>")
    assert "it rains" not in written and "looks" not in written and "Rain" not in written


def test_pieces_without_loss_or_observations_stay_as_they_are():
    pieces = [Piece("user\n"), Piece(REPLY), Piece("<|im_end|>", True, 1), Piece("No tool.", False, 1)]
    assert list(without_observations(pieces)) == pieces
