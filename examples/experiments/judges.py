"""Four kinds of judges on the same replies of a quickstart's models, and how far they agree.

    python examples/experiments/judges.py RUN [--out FOLDER] [align eval's options]

RUN is the output folder of a finished `align quickstart`; its base, SFT and PPO models answer the held-out prompts
greedily. The reward is the run's own and the function stands below. People and the language model are played: three
annotators rank by the gold score through a noise of half a point each, and a server on this machine knows which reply
is right and, where that does not decide, prefers what it reads first. So what is shown is how the table reads and
that it is counted rightly, not how good people or language models are.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from align import cli
from align.stages.common import read_rows
from align.tinyworld.gold import GoldScore
from align.tinyworld.world import World

STAGES = ("base", "sft", "ppo")
ANNOTATORS, NOISE = ("ann", "bob", "cleo"), 0.5
PARTS = ("user", "reply A", "reply B")
SHOWN = re.compile("".join(rf"##### \w+ {part}\n(.*)\n" for part in PARTS) + r"##### \w+ end\n", re.DOTALL)


def courteous(prompts: Sequence[object], first: Sequence[str], second: Sequence[str]) -> list[int]:
    """A function that sees both: more words of courtesy win, however wrong they are."""
    words = re.compile(r"please|thank|happy|sure|of course|good question", re.IGNORECASE)
    return [len(words.findall(a)) - len(words.findall(b)) for a, b in zip(first, second, strict=True)]


@contextmanager
def language_model(gold: GoldScore):
    """Serves an endpoint that judges; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked = body["messages"][0]["content"]
            question, *replies = SHOWN.search(asked).groups()
            right = [gold.judge(question, reply).correct for reply in replies]
            verdict = re.findall(r"\[\[[AB][^\]]*\]\]", asked.rpartition(" end\n")[2])[right[1] > right[0]]
            answer = {"choices": [{"message": {"content": f"I looked.\n{verdict}"}, "finish_reason": "stop"}]}
            answer["usage"] = {"prompt_tokens": len(asked.split()), "completion_tokens": 3}
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def rank(out: Path, gold: GoldScore) -> Path:
    """The votes of the annotators on the replies in `out`, a row a reply."""
    rng, file = random.Random(0), out / "people.csv"
    replies = {stage: read_rows(out / "replies" / f"{stage}.jsonl") for stage in STAGES}
    with file.open("w", newline="", encoding="utf-8") as opened:
        rows = csv.writer(opened)
        rows.writerow(("prompt", "annotator", "model", "reply", "score"))
        for answered in zip(*replies.values(), strict=True):
            question = answered[0]["prompt"][-1]["content"]
            for who in ANNOTATORS:
                felt = {}  # the same reply is felt the same
                for row in answered:
                    text = row["completion"]
                    worth = gold.judge(question, text).score + rng.gauss(0, NOISE)
                    rows.writerow((question, who, row["model"], text, round(felt.setdefault(text, worth), 1)))
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, help="default: RUN/experiments/judges")
    args, options = parser.parse_known_args()
    out = args.out or args.run / "experiments/judges"
    gold = GoldScore(World(json.loads((args.run / "world/world.json").read_text())["seed"]))
    command = ["eval", *(f"{stage}={args.run / stage}" for stage in STAGES), "--out", str(out), "--max-tokens", "40"]
    command += ["--prompts", str(args.run / "world/eval_prompts.jsonl"), *options]
    command += ["--judge", f"function={__file__}:courteous"]
    with redirect_stdout(io.StringIO()):
        code = cli.main(command)  # for the replies, which the annotators need
    if code:
        return code
    with language_model(gold) as url:
        judges = ("--judge", f"people={rank(out, gold)}", "--judge", f"reward={args.run}")
        return cli.main([*command, *judges, "--judge-url", url, "--judge-model", "played"])


if __name__ == "__main__":
    sys.exit(main())
