"""vLLM as a server: one that this engine starts, owns and ends, or servers that run already (`settings.urls`).

Weights go by files that the server's workers read, or by HTTP to one that does not see them (`rollouts.vllm.delivery`),
with a LoRA adapter merged into them there (`rollouts.vllm.low_rank`) or any other one here; an own server starts with
random ones, and nothing is generated before the first `update_weights`. Every reply names the weights that
made it, by a mark that is this engine's own: a reply by other ones is refused and asked for once more.

A server that dies or hangs in the middle of a call costs time only: an own one is started again (`max_restarts` times),
gets the last weights from their file, and is asked for what is unanswered; one given by URL is left out when it fails
twice, and its share goes to the others. Every reply has its own seed, so a call gives the same replies in the end (to
the rounding of matrix products, which in bfloat16 depends on how many sequences run at once).

Several ranks share one server: `is_owner` starts, pushes, restarts and ends it, `share` tells the others where it is.
`update_weights` is for a moment when no rank generates: there servers given by URL join and leave, as `listed` says,
and one that joins has the new weights before it is asked for a reply. `generate` may run in one thread while another
trains; `close` may be called from any.
"""

from __future__ import annotations

import atexit
import logging
import secrets
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from align.runtime.errors import AlignError
from align.runtime.peft_model import base_of
from rollouts.errors import RolloutError
from rollouts.protocol import Completion, SamplingParams
from rollouts.settings import VLLMSettings
from rollouts.vllm.auth import read_key
from rollouts.vllm.client import Client, ServerGone
from rollouts.vllm.delivery import sees
from rollouts.vllm.low_rank import changes
from rollouts.vllm.process import ServerProcess
from rollouts.vllm.requests import (
    answered_completion,
    answered_scores,
    check_ids,
    logprobs_mode,
    sampling_requests,
    scoring_request,
)
from rollouts.vllm.servers import ServerPlace, Servers, Stream
from rollouts.vllm.setup import described, serve_arguments, write_config
from rollouts.vllm.weights import Push, checked, private_folder
from rollouts.weights import checkpoint_bytes, checkpoint_names

logger = logging.getLogger(__name__)


def _alone(shared: Any) -> Any:
    return shared


@dataclass(frozen=True, slots=True)
class _Found:
    """What the owner tells the other ranks: where the servers are, and the mark of this engine's weights.

    Of an own server also its socket and log, and the machine they are on.
    """

    places: tuple[ServerPlace, ...]
    mark: str
    socket: Path | None = None
    log: Path | None = None
    host: str = ""


class VLLMServerEngine:
    """Samples and scores with vLLM behind HTTP.

    Args:
        model: the trainer's module; only its configuration, names and shapes are read.
        settings: of vLLM; with `urls` those servers are used, and their key is read from `api_key_env`.
        is_owner: this rank starts the server and pushes.
        share: gives every rank the owner's object; called by all ranks together. Default: there is one rank.
        temperature: of the rollouts to come; decides which log-probabilities the server gives.
        takes_adapters: LoRA adapters come by themselves through `update_adapter`, on top of whole weights.
        listed: the servers that are to be used now, in place of `settings.urls` where it gives any; the owner asks it
            before every push.

    Raises:
        RolloutError: a server does not start, cannot be reached, refuses the key, or holds another model.
    """

    shares_module = False

    def __init__(
        self,
        model: nn.Module,
        settings: VLLMSettings,
        *,
        is_owner: bool = True,
        share: Callable[[Any], Any] = _alone,
        temperature: float = 1.0,
        takes_adapters: bool = False,
        listed: Callable[[], Sequence[str]] = tuple,
    ):
        self.settings, self.weight_version, self.takes_adapters = settings, 0, takes_adapters
        self._is_owner, self._share, self._listed = is_owner, share, listed
        self._refused: dict[str, str] = {}  # servers that were not taken, and why; said once
        self._mode, self._shapes = logprobs_mode(temperature), checkpoint_names(model, merge=not takes_adapters)
        self._unusable: str | None = "has no weights yet: push them by update_weights first"
        self._busy = threading.RLock()
        self._closed = False
        self._folder: Path | None = None  # of the pushed weights, on the owner
        self._process: ServerProcess | None = None
        self._servers: Servers | None = None
        self._config = base_of(model).config.get_text_config()
        self._vocabulary: int = self._config.vocab_size
        try:
            on_cpu = self._find(model)
        except BaseException:
            self.close()
            raise
        self._sleeps = self._process is not None and share is _alone and settings.sleep and not on_cpu
        atexit.register(self.close)

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[Completion]:
        """`params.n` completions per prompt, prompt-major. Without a seed every call draws anew.

        Raises:
            RolloutError: an empty or too long prompt, an id outside the vocabulary, no weights, or no server is left.
        """
        self._check_usable()
        if params.return_support and params.temperature > 0:
            raise RolloutError("the vLLM server does not say which ids could be drawn: use rollout engine hf")
        for row, prompt in enumerate(prompts):
            self._check(prompt, f"prompt {row}", self.settings.max_model_len - params.max_new_tokens)
        with self._busy:
            self._check_usable()
            answers = self._servers.ask_all(sampling_requests(prompts, params, self._vocabulary))
            return [answered_completion(answer, params, self._mode, self.weight_version) for answer in answers]

    def token_logprobs(self, sequences: list[list[int]]) -> list[tuple[float, ...]]:
        """See `rollouts.protocol.Scoring`.

        Raises:
            RolloutError: as `generate`.
        """
        self._check_usable()
        for row, sequence in enumerate(sequences):
            self._check(sequence, f"sequence {row}", min(server.place.room for server in self._servers.servers) - 1)
        with self._busy:
            self._check_usable()
            answers = self._servers.ask_all([scoring_request(sequence) for sequence in sequences])
            return [answered_scores(answer, ids) for answer, ids in zip(answers, sequences, strict=True)]

    def update_weights(self, named_tensors: Stream, version: int) -> None:
        """Takes every weight of the model under checkpoint names. All ranks call it; all read the stream to its end.
        An engine that takes adapters keeps them, and no server has them before `update_adapter`.

        Raises:
            RolloutError: a wrong or missing name or shape, no room for the files, or a server refused them; nothing is
                generated until a whole update has gone through.
            Exception: what the stream itself raises; the same then.
        """

        def write(stream: Stream) -> Push:
            return self._servers.write(checked(stream, self._shapes), self._folder, version)

        self._take(named_tensors, write, version, then=_NO_ADAPTER if self.takes_adapters else None)

    def update_adapter(self, config: dict[str, Any], named_tensors: Stream, version: int) -> None:
        """Takes a LoRA adapter in place of the last one, which every server adds to the base's weights. As
        `update_weights` otherwise.

        Args:
            config: the content of PEFT's `adapter_config.json`.
            named_tensors: what PEFT's `adapter_model.safetensors` holds.

        Raises:
            RolloutError: the engine was not built for adapters or has no weights yet; else as `update_weights`.
        """
        if not self.takes_adapters:
            raise RolloutError("this engine takes whole weights only: build it with takes_adapters, or merge and push")
        if self._unusable not in (None, _NO_ADAPTER):
            _drain(named_tensors)
            raise RolloutError(f"the vLLM engine {self._unusable}")

        def write(stream: Stream) -> Push:
            return self._servers.write_adapter(changes(config, stream, self._shapes), self._folder, version)

        self._take(named_tensors, write, version, before=_NO_ADAPTER)

    def _take(
        self,
        named_tensors: Stream,
        write: Callable[[Stream], Push],
        version: int,
        *,
        before: str = "got only a part of its last weights: push all of them again",
        then: str | None = None,
    ) -> None:
        """Has the owner write the stream, and the servers that are there now take it.

        Args:
            before: why nothing can be generated until that is done.
            then: why nothing can be generated afterwards, in which case no server takes anything yet.
        """
        with self._busy:
            self._check_open()
            self._unusable = before
            rest = iter(named_tensors)

            def push() -> tuple[Push, tuple[ServerPlace, ...]]:
                try:
                    pushed = write(rest)
                finally:
                    _drain(rest)  # gathering is collective: the other ranks are at it too
                if then is None:
                    self._renew()
                    self._servers.push()
                return pushed, self._servers.places

            if not self._is_owner:
                _drain(rest)
            self._servers.delivery.pushed, places = self._on_owner(push)
            self._servers.take(places)
            self._unusable, self.weight_version = then, version

    def sleep(self) -> None:
        """Frees the GPU's memory of an own server while the trainer updates. Not with several ranks, not on a CPU."""
        with self._busy:
            self._check_open()
            if self._sleeps:
                self._servers.sleep()

    def wake(self) -> None:
        """The server has its memory again."""
        with self._busy:
            self._check_open()
            self._servers.wake()

    def close(self) -> None:
        """Ends the own server and removes the weights' files; a call that runs in another thread fails."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._servers is not None:
            self._servers.close()
        if self._process is not None:
            self._process.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _find(self, model: nn.Module) -> bool:
        """The servers that run already, or a new one with random weights in the form of `model`; whether it is on a
        CPU."""
        settings = self.settings

        def find() -> tuple[_Found, bool]:
            self._folder, mark = private_folder(checkpoint_bytes(model)), secrets.token_hex(8)
            if settings.urls:
                return _Found(tuple(map(self._named, self._wanted())), mark), False
            process = ServerProcess(start_timeout=settings.start_timeout, owned_folders=[self._folder])
            self._process = process
            write_config(model, process.home)
            process.arguments = serve_arguments(model, process.home, settings, self._mode)
            logger.info("a vLLM server is started, which takes a minute or two; its log: %s", process.log)
            process.start()
            place, device = self._placed(process.client)
            own = {"socket": process.socket, "log": process.log, "host": socket.gethostname()}
            return _Found((place,), mark, **own), device == "cpu"

        found, on_cpu = self._on_owner(find)
        if found.socket is not None and (found.host != socket.gethostname() or not found.socket.exists()):
            raise RolloutError(
                f"the vLLM server runs on {found.host}, out of this rank's reach: start servers by hand "
                "(python -m rollouts.vllm.serve) and name them in ppo.rollout.vllm.urls"
            )
        own = {"socket": found.socket, "log": found.log, "process": self._process}
        self._servers = Servers(found.places, settings, found.mark, **own)
        return on_cpu

    def _wanted(self) -> list[str]:
        """The addresses of the servers that are to be used now."""
        return [url.rstrip("/") for url in self._listed() or self.settings.urls]

    def _named(self, url: str) -> ServerPlace:
        """A server that runs already."""
        client = Client(url, read_key(self.settings.api_key_env))
        if client.in_the_clear:
            logger.warning("%s: the key and all rollouts travel unencrypted to that machine", client.url)
        return self._placed(client)[0]

    def _placed(self, client: Client) -> tuple[ServerPlace, str]:
        """What a server is that can be used, and what it computes on.

        Raises:
            RolloutError: it cannot be reached, refuses the key, or is not what is needed.
        """
        fact = described(client, self._config, self.settings, self._mode)
        try:
            beside = sees(client, self._folder)
        except ServerGone as gone:
            raise RolloutError(f"the vLLM server {client.url} {gone}") from None
        if not beside:
            logger.info("%s does not see %s: weights go there over HTTP", client.url, self._folder)
        return ServerPlace(client, fact["max_num_seqs"], fact["max_model_len"], beside), fact["device"]

    def _renew(self) -> None:
        """Servers join and leave. One that cannot be used is left out, which is said once; the others go on."""
        if not self.settings.urls:
            return
        try:
            wanted = self._wanted()
        except AlignError as problem:
            self._say_once("the list of servers", f"stays as it was: {problem}")
            return
        here = {place.client.url: place for place in self._servers.places}
        for url in wanted:
            if url in here:
                continue
            try:
                here[url] = self._named(url)
            except RolloutError as problem:
                self._say_once(url, f"does not join: {problem}")
            else:
                self._refused.pop(url, None)
                logger.info("%s joins", url)
        if not (kept := [here[url] for url in wanted if url in here]):
            self._say_once("the list of servers", "names none that can be used, and stays as it was")
            return
        for url in here:
            if url not in wanted:
                logger.info("%s leaves", url)
        self._servers.take(kept)

    def _say_once(self, what: str, problem: str) -> None:
        if self._refused.get(what) != problem:
            logger.warning("%s %s", what, problem)
        self._refused[what] = problem

    def _on_owner(self, action: Callable[[], Any]) -> Any:
        """What `action` gives on the owner, on every rank; what goes wrong there likewise, as RolloutError."""
        outcome = None
        if self._is_owner:
            try:
                outcome = (action(), None)
            except (AlignError, OSError) as error:
                outcome = (None, str(error))
        result, problem = self._share(outcome)
        if problem is not None:
            raise RolloutError(problem)
        return result

    def _check(self, ids: list[int], what: str, room: int) -> None:
        check_ids(ids, what, self._vocabulary)
        if len(ids) > room:
            raise RolloutError(
                f"{what} has {len(ids)} tokens, and {room} fit into max_model_len {self.settings.max_model_len} beside "
                "the reply: raise ppo.rollout.vllm.max_model_len or shorten it"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise RolloutError("this engine was closed")

    def _check_usable(self) -> None:
        self._check_open()
        if self._unusable is not None:
            raise RolloutError(f"the vLLM engine {self._unusable}")


_NO_ADAPTER = "lost its adapter: push it again"


def _drain(stream: Iterable[Any]) -> None:
    """Reads to the end and keeps nothing."""
    for _ in stream:
        pass
