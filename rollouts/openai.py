"""An OpenAI-compatible server of one model, on loopback and behind a key: python -m rollouts.openai --model FOLDER

It is vLLM's own API server where that is installed, else transformers' (`transformers serve`), each with what it lacks:
the key is wanted on every route (vLLM's own guards some, transformers has none), and a reply ends where the model's
format ends it. Both take end tokens from the folder's `generation_config.json` alone, so the folder that they are given
is one of links to the model's files with a `generation_config.json` of its own: the end tokens are in it, and sampling
is on, without which transformers would pass over a request's temperature. The chat template is the tokenizer's.

The key comes from an environment variable, never from the command line, which every user of the machine can read:

    ALIGN_VLLM_API_KEY=$(openssl rand -hex 32) python -m rollouts.openai --model FOLDER --stop-id 2
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.runtime.packages import is_installed, require_package
from rollouts.errors import RolloutError
from rollouts.vllm.auth import RequireKey, add_key_option, take_key

ENGINES = ("vllm", "transformers")
GENERATION = "generation_config.json"
NEEDED = ("fastapi", "uvicorn", "openai")  # by transformers' server


def build_parser() -> argparse.ArgumentParser:
    """What can be said on the command line; with vLLM anything else goes to it as it is."""
    parser = argparse.ArgumentParser(
        prog="python -m rollouts.openai",
        description="An OpenAI-compatible server of one model; wants its key on every route.",
        epilog="Options that are not listed are handed to vLLM.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="folder, or hub id, of a whole model")
    parser.add_argument("--name", help="what requests call it (default: the folder's name)")
    parser.add_argument("--engine", choices=ENGINES, help="default: vllm where it is installed")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--stop-id", type=int, action="append", default=[], help="a token that ends a reply; may be given again"
    )
    add_key_option(parser)
    parser.add_argument("--remove", type=Path, help=argparse.SUPPRESS)  # a folder, when the server has ended
    return parser


def engine_here(asked: str | None = None) -> str:
    """Whose server is taken.

    Raises:
        MissingPackageError: what it needs is not installed.
    """
    engine = asked or ("vllm" if is_installed("vllm") else "transformers")
    for package in ("vllm",) if engine == "vllm" else NEEDED:
        require_package(f"the server of {engine}", package)
    return engine


def main(argv: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT."""
    args, rest = build_parser().parse_known_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the folders are removed
    try:
        engine = engine_here(args.engine)
        take_key(args.api_key_env, rest)
        with tempfile.TemporaryDirectory(prefix="align-serve-") as home:
            name = args.name or Path(args.model).name
            folder = ready(Path(args.model), Path(home), name, args.stop_id) if Path(args.model).is_dir() else None
            if engine == "vllm":
                from rollouts.vllm.serve import serve_openai

                serve_openai(str(folder or args.model), name, args.host, args.port, rest)
            elif rest:
                sys.exit(f"transformers' server does not know {rest[0]}")
            else:
                os.chdir(home)  # it calls the model by where it lies, which is by its name then
                _serve_transformers(name if folder is not None else args.model, args.host, args.port)
    except RolloutError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if args.remove is not None:
            shutil.rmtree(args.remove, ignore_errors=True)


def ready(model: Path, home: Path, name: str, stops: Sequence[int]) -> Path:
    """The folder `home/name`: links to the model's files, and how it is sampled from.

    Raises:
        RolloutError: its generation_config.json is damaged.
    """
    folder = home / name
    folder.mkdir(parents=True)
    for file in model.resolve().iterdir():
        if file.name != GENERATION:
            (folder / file.name).symlink_to(file)
    try:
        settings = json.loads((model / GENERATION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        settings = {}
    except ValueError as error:
        raise RolloutError(f"{model / GENERATION} is not valid JSON ({error}): copy it again") from error
    settings |= {"eos_token_id": _all_ends(settings, stops), "do_sample": True}
    (folder / GENERATION).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return folder


def _all_ends(settings: dict[str, Any], stops: Sequence[int]) -> list[int] | None:
    known = settings.get("eos_token_id")
    ends = [*stops, *(known if isinstance(known, list) else [known])]
    return [end for end in dict.fromkeys(ends) if isinstance(end, int)] or None


def _serve_transformers(model: str, host: str, port: int) -> None:
    """transformers' server with the key before it."""
    import uvicorn
    from transformers.cli.serve import Serve

    class Guarded(uvicorn.Config):
        def __init__(self, app: Any, **options: Any):
            super().__init__(RequireKey(app), **options)

    uvicorn.Config = Guarded  # it makes one of the application that it builds
    Serve(model, host=host, port=port)


if __name__ == "__main__":
    main()
