"""align serve RUN|MODEL: an OpenAI-compatible server of a model, for any client that speaks to one.

RUN is a run's folder, of which the newest finished policy is meant; MODEL is a folder or hub id of a model, or of an
adapter, which is merged into its base first. It is vLLM's server where vLLM is installed, else transformers'; replies
are rendered by the model's own template and end at its end tokens.

It listens on loopback and wants a key on every route, `Authorization: Bearer KEY`: one made at random, printed once,
or the one in the environment variable that --key names.
"""

from __future__ import annotations

import argparse
from typing import Any

from align.commands.options import positive

ENGINES = ("vllm", "transformers")


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser's `commands`."""
    parser = commands.add_parser("serve", help="serve a model to OpenAI-compatible clients", description=__doc__)
    parser.set_defaults(work=serve_command)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="RUN|MODEL", help="a run's folder, or a model's folder or hub id")
    parser.add_argument("--port", type=positive, default=8000, metavar="N", help="default 8000")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1, this machine)")
    parser.add_argument("--key", metavar="VARIABLE", help="environment variable with the key (default: a random key)")
    parser.add_argument("--engine", choices=ENGINES, help="whose server (default: vLLM's where it is installed)")
    parser.add_argument("--print", action="store_true", help="print the command and start nothing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def serve_command(args: argparse.Namespace) -> None:
    """Serve, or print how.

    Raises:
        MissingFileError, NotAPolicyError, TokenizerError: no such model, or none that writes replies.
        MissingPackageError: neither vLLM nor what transformers' server needs is installed.
        AddressInUseError: nothing can listen there.
        RolloutError: there is no key in the variable, or one that is too short.
        MergeError: an adapter on 4-bit weights.
    """
    from align.models.named import policy_at

    path = policy_at(args.model)
    from align.chat.serving import served, show, start

    what = served(path, args.host, args.port, args.engine, args.key)
    (show if args.print else start)(what, args.key is not None)
