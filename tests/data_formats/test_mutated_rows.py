"""Rows of every format with fields deleted, retyped, nested or replaced: read, or refused by file, line and field."""

import copy
import gzip
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_formats import DataError, EmptyDatasetError, MissingFileError, Record, read
from data_formats.detection import FORMATS

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
TURNS = [
    U,
    A | {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
    {"role": "tool", "content": "4"},
    A | {"content": [{"type": "text", "text": "r"}, {"type": "thinking", "thinking": "t"}]},
]
ABOUT = {"category": "c", "source": "s", "tags": ["t"], "tools": [{"name": "f"}]}
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]
SEEDS = [
    {"messages": TURNS} | ABOUT,
    {"messages": TURNS, "label": True},
    {"conversations": SHARED, "system": "s"},
    {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": {"from": "gpt", "value": "s"}},
    {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "r"]]},
    {"instruction": "i", "instances": [{"input": "x", "output": "o"}]},
    {"prompt": "q", "completion": [A]},
    {"prompt": [U], "completion": [A], "label": False},
    {"prompt": [U], "chosen": [A], "rejected": [U, A | {"content": "s"}], "grade": 1} | ABOUT,
    {"chosen": "\n\nHuman: q\n\nAssistant: r", "rejected": "\n\nHuman: q\n\nAssistant: s"},
    {"chosen": [U, A], "rejected": [U, A | {"content": "s"}]},
    {"chosen_messages": [U, A], "rejected_messages": [U, A | {"content": "s"}]},
    {"question": "q", "response_j": "r", "response_k": "s"},
    {"conversation_a": [U, A], "conversation_b": [U, A | {"content": "s"}], "winner": "model_a"},
    {"instruction": "i", "output_1": "r", "output_2": "s", "preference": 1.2},
    {"instruction": "i", "completions": [{"response": "r", "overall_score": 7}, {"response": "s"}]},
    {"prompt": "q", "replies": [{"content": "a", "score": 1, "steps": [{"text": "a", "rating": 1}]}]} | ABOUT,
    {"prompt": "q", "reply": "r", "score": 0.5, "kl": 1.0},
    {"prompt": [U], "completions": ["r", "s"], "reference": "r"},
    {"prompt": "q", "sft_reply": "r", "ppo_reply": "s", "sampled": {"sft": [{"reply": "t"}]}},
    {"history": "q", "human_ref_A": "r", "human_ref_B": "s", "score_A": 3, "score_B": 1},
    {"question": "q", "answers": [{"text": "r", "pm_score": 2, "selected": True}, {"text": "s", "score": 1}]},
    {"question": "q", "ground_truth": "1", "a": {"is_correct": True, "solution": "r"}},
    {"prompt": "q", "edited": "e", "chosen": "c", "rejected": "r"},
    {
        "question": {"problem": "q"},
        "label": {"steps": [{"completions": [{"text": "a", "rating": 1}], "chosen_completion": 0}]},
    },
    {"question": "q", "preference": [0, 1, 2, 0, 1, 2], "passages": [["t", "s"]]}
    | {f"prediction {number}": str(number) for number in range(1, 5)},
    {"prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"},
    {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"], "subset": "Ties", "num_correct": 1},
    {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "s", "chosen_model": "m"},
    {"prompt": "q", "scores": [True, 0.5], "response_1": "a", "response_2": "b"},
    {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
    | {"is_response_0_safe": True, "is_response_1_safe": False},
    {"prompt": '["q", "p"]', "response_a": '["a", "b"]', "response_b": '["c", "d"]', "winner_model_a": 1}
    | {"winner_model_b": 0, "winner_tie": 0},
    {"context": [U], "response1": "a", "response2": "b", "overall_preference": -2},
    {"question": "q", "response_A": "a", "response_B": "b", "label": "A>B"},
    {"prompt": "q", "response": "r", "helpfulness": 4, "verbosity": 1, "coherence": None},
    {"prompt": "q", "response": "r", "is_safe": False, "category": {"drugs": True, "theft": False}},
    {"prompt": "q", "response": "r", "score": "4.5"},
    {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
    {"question": {"full_text": "q"}, "answer_0": "a", "answer_1": "b", "score_0": 0.5, "score_1": -0.5},
    {"info": {"post": "p", "title": "t"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1},
    {"info": {"article": "p"}, "summary": {"text": "a", "axes": {"overall": 6, "accuracy": 5}}},
    {
        "message_tree_id": "t",
        "prompt": {"text": "q", "role": "prompter", "replies": [{"text": "a", "role": "assistant"}]},
    },
    {"message_tree_id": "t", "message_id": "m", "parent_id": None, "text": "q", "role": "prompter", "rank": None},
    {
        "chat": {"turn_1": {"Human": "<|Human|>: q<eoh>", "Commands": 'Search("x")', "MOSS": "r"}},
        "meta_instruction": "s",
    },
    {"plain_text": "[Human]: q<eoh> [MOSS]: r<eoa>", "num_turns": 1},
    {"question": [[U]], "function": [{"name": "f", "parameters": {}}], "ground_truth": [{"f": {}}]},
    {"conversation": [{"input": "q", "output": "r"}, U, A], "toxic": False},
    {"query": "q", "response": "r"},
    {"problem": "q", "solution": "r", "answer": 4},
    {"prompt": [U, A, U], "completion": [A]},
    {
        "fields": {"prompt": "q", "response_1": "a", "response_2": "b"},
        "responses": {"which": [{"value": "response_2"}]},
    },
    {"fields": {"prompt": "q", "a": "x", "b": "y"}, "status": "completed"}
    | {"responses": [{"values": {"r": {"value": [{"value": "a", "rank": 1}, {"value": "b", "rank": 2}]}}}]},
    {"prompt": "q", "response": "r", "rating.responses": [3, 5], "rating.responses.status": ["submitted", "draft"]},
    {"prompt": "q", "response_a": "a", "response_b": "b", "p": [{"value": "response_a"}], "p-suggestion": None},
    {"data": {"prompt": "q", "answer1": "a", "answer2": "b"}}
    | {"annotations": [{"result": [{"from_name": "c", "type": "pairwise", "value": {"selected": "left"}}]}]},
    {"prompt": "q", "answer1": "a", "answer2": "b", "c": {"selected": "left"}, "annotation_id": 1, "lead_time": 2.0},
    {"question": "q", "answer": "r", "std_answer": "x", "class": "c"},
    {"turns": ["q", "p"], "reference": ["r"], "category": 3},
    {"prompt": "q"},
    ["q", "r"],
    {"text": "t"},
]
ENDINGS = (".json", ".jsonl", ".csv", ".jsonl.gz", ".jsonl.zst", ".parquet", ".parquet.gz", ".xml", ".txt", ".md")
PLAIN = [None, True, 0, -1, 7, 1.5, 1e400, 10**400, "", " ", "x", "\ud800", "{", '{"name": 1}']
HOLDING = [
    [],
    {},
    [[]],
    [{}],
    [None],
    ["x"],
    {"role": "user"},
    {"type": "text"},
    {"from": 3, "value": {}},
    [{"steps": 1}],
]
JUNK = st.sampled_from([*PLAIN, *HOLDING]).map(copy.deepcopy)


def places(value, at=()):
    """The path of everything in a row."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


@st.composite
def mutated(draw):
    row = json.loads(json.dumps(draw(st.sampled_from(SEEDS))))  # a copy that shares nothing within itself
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(row))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        here = row
        for step in way:
            here = here[step]
        how = draw(st.sampled_from(["delete", "replace", "nest", "wrap"]))
        if how == "delete":
            del here[last]
        else:
            here[last] = draw(JUNK) if how == "replace" else [here[last]] if how == "nest" else {"x": here[last]}
    return row


def write(path, row):
    """A file of this one row, in the container and compression of its name."""
    content = json.dumps(row).encode()
    if path.name.endswith(".json"):
        content = b"[" + content + b"]"
    if ".parquet" in path.name:
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        held = io.BytesIO()
        try:
            pq.write_table(pa.Table.from_pylist([row if isinstance(row, dict) else {"row": row}]), held)
        except (pa.ArrowException, OverflowError, TypeError, UnicodeEncodeError, NotImplementedError):
            return  # Parquet cannot hold it: the JSON of it is a damaged Parquet file
        content = held.getvalue()
    if path.name.endswith(".gz"):
        content = gzip.compress(content)
    if path.name.endswith(".zst"):
        content = zstandard.ZstdCompressor().compress(content)
    path.write_bytes(content)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutated(), st.sampled_from(ENDINGS), st.data())
def test_a_mutated_row_is_read_or_refused_in_our_words(tmp_path_factory, row, ending, data):
    path = Path(tmp_path_factory.getbasetemp()) / f"mutated{ending}"
    path.write_bytes(b"")
    write(path, row)
    named = data.draw(st.sampled_from(FORMATS))
    tries = [(kind, "auto") for kind in Record.__args__] + [(named.kind, named.name)]
    for kind, format in tries:
        try:
            report = read(path, kind, format=format).report
        except EmptyDatasetError as error:
            assert str(path) in str(error)
        except (DataError, MissingFileError) as error:
            assert str(path) in str(error)
            if ".json" in ending and "nested too deeply" not in str(error) and "not JSON" not in str(error):
                assert getattr(error, "line", None) == 1, error
                about_the_row = ("shape", "could be", "values are not", "these are", "row has", "keys seen")
                assert error.field or any(words in error.problem for words in about_the_row), error
        else:
            assert report.rows == report.used + sum(report.dropped.values())


@pytest.mark.parametrize("row", SEEDS, ids=lambda row: ",".join(row) if isinstance(row, dict) else "list")
def test_the_seeds_are_sound(tmp_path, row):
    """What is mutated starts as a row that at least one kind of record can be read from."""
    write(tmp_path / "x.jsonl", row)
    made = 0
    for kind in Record.__args__:
        try:
            made += len(read(tmp_path / "x.jsonl", kind).records)
        except DataError:
            continue
    assert made
