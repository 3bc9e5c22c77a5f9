"""What helps a reward model in the embedded world: one table a question, one column a seed.

    python examples/reward_experiments.py RUN [RUN …] [--table NAME …] [--out FILE]

Each RUN is the output folder of a finished `align quickstart`, one a seed. The arms (`align.stages.reward_arms`) are
kept in `RUN/experiments/reward/`: started again, the program goes on. All of them take about 20 minutes a seed on one
core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from align.runs.launch import guarded, prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables; returns the exit code."""
    from align.stages import reward_arms

    known = reward_arms.tables()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path)
    parser.add_argument("--table", dest="tables", nargs="+", choices=known, default=list(known))
    parser.add_argument("--out", type=Path, help="write the tables to this file")
    args = parser.parse_args(argv)
    prepare()

    with guarded(proceed=f"python {' '.join(sys.argv)}") as ending:
        for run in args.runs:
            reward_arms.require_finished(run)
        for run in args.runs:
            reward_arms.train_all(run, [arm for name in args.tables for arm in known[name]])
        texts = [f"{name}\n\n{reward_arms.read_table(known[name], args.runs)}\n" for name in args.tables]
        print("\n".join(texts), flush=True)
        if args.out:
            args.out.write_text("\n".join(texts), encoding="utf-8")
    return ending.code


if __name__ == "__main__":
    sys.exit(main())
