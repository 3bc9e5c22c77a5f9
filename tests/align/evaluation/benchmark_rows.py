"""Rows of the public benchmarks, written by hand after the field names of their files, and a folder of such files."""

import gzip
import json

import pyarrow
import pyarrow.parquet

ASK = [{"role": "user", "content": "Name a fruit."}]

REWARDBENCH2 = [
    {
        **{"id": f"{at}", "prompt": f"What is {at} + 1?", "subset": subset, "models": ["a", "b", "c", "d"]},
        **{"chosen": [f"{at + 1}, of course"], "rejected": [f"{at}", f"{at + 2}", "no idea at all, and why should I"]},
        **{"num_correct": 1, "num_incorrect": 3, "total_completions": 4},
    }
    for at, subset in enumerate(("Factuality", "Precise IF", "Math", "Safety", "Focus"))
] + [
    {
        **{"id": f"{form}:{number}", "prompt": f"Name {what} {number}", "subset": "Ties", "models": []},
        **{"chosen": right, "rejected": ["nothing", "an unknown thing"], "num_correct": len(right)},
        **{"num_incorrect": 2, "total_completions": len(right) + 2},
    }
    for form, what, right in (("ref", "the fruit", ["apple"]), ("tied", "a fruit", ["apple", "pear", "watermelon"]))
    for number in (0, 1)
]
REWARDBENCH = [
    {
        **{"prompt": f"Say {subset}", "chosen": f"well, {subset}", "rejected": "no", "id": at, "subset": subset},
        **{"chosen_model": "m", "rejected_model": "n"},
    }
    for at, subset in enumerate(("alpacaeval-easy", "mt-bench-hard", "donotanswer", "math-prm", "hep-go", "hep-cpp"))
]
PRIOR = [{"prompt": ASK, "chosen": "An apple.", "rejected": "A stone, a long one.", "id": 0}]
RM_BENCH = [
    {
        **{"id": f"{domain}/0", "prompt": f"Explain {domain}", "domain": domain},
        **{"chosen": ["so", "so it is, in detail", "# So\n\n- it is, in detail"]},
        **{"rejected": ["not", "it is not, in more detail", "# Not\n\n- it is not, in more detail"]},
    }
    for domain in ("chat", "code", "math", "safety-refuse", "safety-response")
]
JUDGEBENCH = [
    {
        **{"pair_id": "81ec", "original_id": "1", "source": source, "question": f"Of {source}?", "label": label},
        **{"response_model": "gpt-4o-2024-05-13", "response_A": "It is A, I think.", "response_B": "B"},
    }
    for source, label in (("mmlu-pro-physics", "A>B"), ("livebench-math", "B>A"), ("livecodebench", "B>A"))
]
PPE_PREFERENCE = [
    {
        **{"question_id": "q1", "prompt": "Tell a joke", "response_1": "A horse walks in.", "response_2": "Ha"},
        **{"model_a": "m", "model_b": "n", "winner": winner, "language": language},
    }
    for winner, language in (("model_a", "English"), ("model_b", "Polish"), ("tie", "English"), ("tie (bothbad)", "x"))
]
PPE_CORRECTNESS = [
    {
        **{"question_id": "7", "model_name": "m", "prompt": "2 + 2 = ?", "scores": [False, True, False, True]},
        **{f"response_{at + 1}": text for at, text in enumerate(("5", "four", "a hundred", "4"))},
        "sampled_conflict_pairs": [[0, 1], [1, 2], [3, 2]],
    }
]
HELPSTEER2 = [
    {
        **{"split": split, "prompt": "c#", "response_1": "C# is a language.", "response_2": "yes"},
        **{"preference_strength": strength, "preference_statement": "s", "preference_elaboration": "e"},
    }
    for split, strength in (("val", -2), ("val", 1), ("val", 0), ("train", 3))
]
HELPSTEER3 = [
    {
        **{"domain": "code", "language": "python", "context": ASK, "response1": "An apple.", "response2": "A stone."},
        **{"overall_preference": strength, "individual_preference": []},
    }
    for strength in (-3, 2)
]
SHP = [
    {
        **{"post_id": "p", "domain": "askculinary_test", "history": f"How to peel {ratio}?", "labels": label},
        **{"human_ref_A": "With care and a knife", "human_ref_B": "Do not", "score_A": 9, "score_B": 4},
        "score_ratio": ratio,
    }
    for label, ratio in ((1, 2.25), (0, 4.0), (1, 1.5))
]
HH = [
    {
        "chosen": "\n\nHuman: Hello\n\nAssistant: Hi, how can I help?\n\nHuman: Bye\n\nAssistant: Goodbye!",
        "rejected": "\n\nHuman: Hello\n\nAssistant: Hi, how can I help?\n\nHuman: Bye\n\nAssistant: Stay, I insist.",
    }
]
FILES = {  # as the hub and the repositories name them
    "reward-bench-2/data/test-00000-of-00001.parquet": REWARDBENCH2,
    "reward-bench/data/filtered-00000-of-00001.parquet": REWARDBENCH,
    "reward-bench/data/raw-00000-of-00001.parquet": REWARDBENCH,
    "pref-test-sets/data/anthropic_helpful-00000-of-00001.parquet": PRIOR,
    "RM-Bench/total_dataset.json": RM_BENCH,
    "RM-Bench/chat_filtered.json": RM_BENCH[:1],
    "JudgeBench/dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl": JUDGEBENCH,
    "PPE-Human-Preference-V1/data/test-00000-of-00001.parquet": PPE_PREFERENCE,
    "PPE-MMLU-Pro-Best-of-K/data/train-00000-of-00001.parquet": PPE_CORRECTNESS,
    "HelpSteer2/preference/preference.jsonl.gz": HELPSTEER2,
    "HelpSteer3/preference/validation.jsonl.gz": HELPSTEER3,
    "SHP/askculinary/test.json": SHP,
    "SHP/askculinary/train.json": SHP,
    "hh-rlhf/harmless-base/test.jsonl.gz": HH,
    "hh-rlhf/harmless-base/train.jsonl.gz": HH,
}


def write(file, rows):
    """Write rows in the container that the file's name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif file.suffix == ".gz":
        file.write_bytes(gzip.compress(lines.encode()))
    else:
        file.write_text(json.dumps(rows) if file.name in ("total_dataset.json", "chat_filtered.json") else lines)
    return file


def write_all(folder):
    """Every benchmark, and files that are none."""
    for name, rows in FILES.items():
        write(folder / name, rows)
    (folder / "README.md").write_text("# mine")
    write(folder / "other/rows.jsonl", [{"instruction": "a", "output": "b"}])
    (folder / "RM-Bench/.gitattributes").write_text("x")
    return folder
