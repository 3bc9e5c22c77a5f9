"""From a model's folder to the command of its server (`rollouts.openai`), which this process then becomes."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from align.models.named import called
from align.models.tokenizer import load_saved_tokenizer
from align.runtime.address import http_url, is_loopback, listen
from align.runtime.terminal import say
from data_formats.chat_format import RawFormat, chat_format
from reward.adapter import is_saved_at
from reward.loading import saved_tokenizer
from rollouts.openai import engine_here
from rollouts.vllm.auth import KEY_VARIABLE, read_key


@dataclass(frozen=True, slots=True)
class Served:
    """What is to be served, and where.

    Attributes:
        path: folder or hub id of a model or adapter.
        name: what requests call it.
        stops: ids of the tokens that end a reply.
        has_turns: False for a model that completes a prompt, and for one whose folder has no template to render with.
        engine: `vllm` or `transformers`.
        variable: the environment variable with the key.
    """

    path: str
    name: str
    stops: tuple[int, ...]
    has_turns: bool
    engine: str
    host: str
    port: int
    variable: str

    def command(self, model: str) -> list[str]:
        """Of the server, for a whole model at `model`."""
        stops = [word for stop in self.stops for word in ("--stop-id", str(stop))]
        words = ["-m", "rollouts.openai", "--model", model, "--name", self.name, "--engine", self.engine]
        words += ["--host", self.host, "--port", str(self.port), "--api-key-env", self.variable]
        return ["python", *words, *stops]

    @property
    def is_adapter(self) -> bool:
        """Whether it has to be merged into its base first."""
        return is_saved_at(self.path)


def served(path: str, host: str, port: int, engine: str | None, variable: str | None) -> Served:
    """What serves the model at `path`.

    Args:
        engine: None: vLLM's server where it is installed.
        variable: None: the key is made at random.

    Raises:
        TokenizerError, ModelFileError: the model's tokenizer cannot be used.
        MissingPackageError: what the server needs is not installed.
    """
    speaker = chat_format(load_saved_tokenizer(path))
    return Served(
        path=path,
        name=called(path),
        stops=speaker.stop_ids,
        has_turns=not isinstance(speaker, RawFormat) and bool(saved_tokenizer(path).chat_template),
        engine=engine_here(engine),
        host=host,
        port=port,
        variable=variable or KEY_VARIABLE,
    )


def show(what: Served, own_key: bool) -> None:
    """Print the commands that `start` stands for."""
    model = what.path
    if what.is_adapter:
        model = f"{what.name.replace('/', '-')}-merged"
        say(shlex.join(["align", "merge", what.path, model]))
    if not own_key:
        say(f"export {what.variable}=$(openssl rand -hex 32)")  # clients of this shell want it too
    say(shlex.join(what.command(model)))


def start(what: Served, own_key: bool) -> None:
    """Become the server; an adapter is first merged into its base, in a temporary folder that the server removes.

    Raises:
        AddressInUseError: nothing can listen there.
        RolloutError: no key in the variable, or one that is too short.
        MergeError: an adapter on 4-bit weights, which is to be merged by hand first.
    """
    listen(what.host, what.port).close()  # told before an adapter is merged
    key = read_key(what.variable) if own_key else secrets.token_hex(32)
    model, after = what.path, []
    if what.is_adapter:
        home = _merged(what.path)
        model, after = str(home / "model"), ["--remove", str(home)]
    _tell(what, None if own_key else key)
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {what.variable: key, "PYTHONPATH": os.pathsep.join(paths)}
    _, *words = what.command(model)
    os.execve(sys.executable, [sys.executable, "-P", *words, *after], environment)


def _merged(adapter: str) -> Path:
    """A temporary folder in which `model` is the adapter in its base."""
    from align.models.merging import merge_folder

    say(f"merging {adapter} into its base", flush=True)
    home = Path(tempfile.mkdtemp(prefix="align-serve-"))
    try:
        merge_folder(adapter, home / "model")
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    return home


def _tell(what: Served, key: str | None) -> None:
    url = f"{http_url(what.host, what.port)}/v1"
    say(f"{what.name} at {url}, by {what.engine}; it is loaded now, and Ctrl-C ends it")
    if key is not None:
        say(f"key: {key}")
    if not is_loopback(what.host):
        say("warning: others on the network can listen in: http is not encrypted", file=sys.stderr)
    if not what.has_turns:
        say(f"its folder knows no turns: ask {url}/completions, with the prompt as it is")
    sys.stdout.flush()
