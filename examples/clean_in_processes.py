"""Clean a file in several processes of `datasets`: the rows and the counts of `align data convert`, sooner.

    python examples/clean_in_processes.py talk.jsonl clean.jsonl --format messages --cleaning rules.yaml --processes 16

The steps that look at each record alone run in the processes. Duplicates are found afterwards, in one, since a record
is compared with all before it. Several machines: each takes some of the files and stops after `write_batches`, and
`align data convert PART … all.jsonl --cleaning duplicates.yaml` does the rest.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from align.data.cleaning import build_steps, cleaning_table, evaluation_prompts
from align.recipe.cleaning_section import read_cleaning
from data_formats import Demonstration, stream, write_jsonl
from data_formats.cleaning import BatchCleaner, Cleaner, steps_alone, write_batches


def main(argv: list[str] | None = None) -> None:
    """As the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="JSON Lines of demonstrations")
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", default="messages", help="as `align data stats` names it (default %(default)s)")
    parser.add_argument("--cleaning", required=True, metavar="YAML", help="as a recipe's cleaning section")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    from datasets import load_dataset

    section = read_cleaning(args.cleaning)
    alone, others = steps_alone(build_steps(section, evaluation_prompts(section)))
    with tempfile.TemporaryDirectory() as folder:
        lines = load_dataset("text", data_files=args.file, split="train", cache_dir=folder)
        clean = BatchCleaner(alone, Demonstration, args.format, name=args.file)
        rows = lines.map(clean, batched=True, remove_columns="text", num_proc=args.processes)
        part = Path(folder) / "part.jsonl"
        read, cleaned = write_batches(part, rows)
        rest = Cleaner(others)
        write_jsonl(args.out, rest.clean(stream(part, Demonstration)) if cleaned.records else ())
    print(read.describe())
    print(cleaning_table(cleaned))
    print(cleaning_table(rest.report))


if __name__ == "__main__":
    main()
