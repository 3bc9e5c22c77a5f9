"""align report RUN: the page of a run; align report A B [C ...]: one page of several, laid over each other.

The page of a run is written anew into RUN/report/index.html, as after every stage. Several runs are compared with the
first of them: what they reached and by how much they differ, with intervals; in what their recipes differ; their
curves; and where figures are not comparable, why. Nothing is trained or loaded: the files of the runs are enough.
"""

from __future__ import annotations

import argparse
from typing import Any

from align.runtime.terminal import say


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    words = "the HTML page of a run, or one that lays several runs over each other"
    parser = commands.add_parser("report", help=words, description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(work=report_command)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, finished or not")
    parser.add_argument("--out", metavar="FOLDER", help="of several runs: where to (default: compare-A-B beside A)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def report_command(args: argparse.Namespace) -> None:
    """Write the page and say where it is.

    Raises:
        ReportError: an option that does not belong to so many runs, or too many of them.
        MissingFileError: a folder that holds no run.
    """
    from align.report import build
    from align.report.compare import ReportError, build_comparison, run_folder

    if len(args.runs) > 1:
        say(build_comparison(args.runs, args.out))
    elif args.out:
        raise ReportError("--out is for several runs; the page of one is written into its folder")
    else:
        say(build.build_report(run_folder(args.runs[0])))
