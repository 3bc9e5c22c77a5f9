"""The servers behind `VLLMServerEngine`: found or started, checked, given weights, brought back when they fail."""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings
from rollouts.vllm_fleet import Body, Fleet, Server
from rollouts.vllm_guard import read_key
from rollouts.vllm_http import Address, ServerGone
from rollouts.vllm_keeper import Guest, Keeper
from rollouts.vllm_push import Push, private_folder, write_push
from rollouts.vllm_server import VLLMServer
from rollouts.vllm_start import dtype_of, plain_model, room_for, write_config
from rollouts.vllm_weights import checked, expected_shapes
from rollouts.vllm_wire import made_by

logger = logging.getLogger(__name__)

SHORT = 30.0  # seconds for a question that costs no work
STRIKES = 2  # failures in a row after which a server given by URL is left out
PAUSE = 1.0  # seconds before a server given by URL is asked again


@dataclass(frozen=True, slots=True)
class Place:
    """What the owner tells the other ranks.

    Attributes:
        servers: URL and key of each.
        home: the private folder of an own server, None for servers given by URL.
        host: the machine of that folder.
        mark: begins the name of every version of this engine's weights.
    """

    servers: tuple[tuple[str, str], ...]
    home: Path | None
    host: str
    mark: str

    def __repr__(self) -> str:
        return f"Place({[url for url, _ in self.servers]})"  # no key in any text


class Backend:
    """Servers that hold one policy's weights.

    Args:
        model: the trainer's module, for its configuration, names and shapes.
        settings: of vLLM.
        mode: vLLM's `logprobs_mode`.
        is_owner: this rank starts, pushes, restarts and ends.
        share: gives every rank the owner's object.
        alone: there is one rank.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: VLLMSettings,
        mode: str,
        *,
        is_owner: bool,
        share: Callable[[Any], Any],
        alone: bool,
    ):
        self.settings, self.mode, self.is_owner, self.alone, self._share = settings, mode, is_owner, alone, share
        self._shapes, self._config = expected_shapes(model), plain_model(model).config.get_text_config()
        self._bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        self._keeper: Keeper | Guest | None = None
        self._folder: Path | None = None
        self._push: Push | None = None
        self._asleep: set[str] = set()
        self._strikes: dict[str, int] = {}
        try:
            place: Place = self.on_owner(lambda: self._open(model))
            self._mark = place.mark
            self.fleet = Fleet(
                [Server(Address(url, key)) for url, key in place.servers],
                timeout=settings.request_timeout,
                turn=self._turn,
                failed=self._failed,
                recover=self._recover,
                refresh=self._refresh,
            )
            if not is_owner and place.home is not None:
                self._keeper = self._guest(place)
            facts = self.on_owner(self._check)
        except BaseException:
            self.close()
            raise
        self.room: int = min(fact["max_model_len"] for fact in facts)
        self.on_cpu: bool = facts[0]["device"] == "cpu"
        for server, fact in zip(self.fleet.servers, facts, strict=True):
            server.at_once = fact["max_num_seqs"]

    def on_owner(self, action: Callable[[], Any]) -> Any:
        """What `action` gives on the owner, on every rank; its RolloutError likewise."""
        outcome = None
        if self.is_owner:
            try:
                outcome = (action(), None)
            except RolloutError as error:
                outcome = (None, str(error))
        result, problem = self._share(outcome)
        if problem is not None:
            raise RolloutError(problem)
        return result

    def ask(self, bodies: list[Body]) -> list[dict[str, Any]]:
        """Answers by the pushed weights, in the order of `bodies`."""
        self._wake({"weights", "kv_cache"})
        version = self._version()
        return self.fleet.ask_all(bodies, lambda answer: made_by(answer, version))

    def deliver(self, stream: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Every rank reads the stream to its end; the owner writes it and has all servers pull it."""
        rest = iter(stream)

        def send() -> Push:
            if self._folder is None:
                self._folder = private_folder(self._bytes)
            self._push = None
            try:
                self._push = write_push(self._folder, checked(rest, self._shapes), version)
            finally:
                if self._push is None:
                    drain(rest)  # gathering is collective: the other ranks are at it too
            self._dress_all()
            return self._push

        if not self.is_owner:
            drain(rest)
        self._push = self.on_owner(send)

    def sleep(self) -> None:
        """Frees a GPU's memory, when the server and its one user are ours."""
        if self._keeper is not None and self.alone and self.settings.sleep and not self.on_cpu and not self._asleep:
            self._reset_cache(self.fleet.servers[0])
            self.fleet.servers[0].address.ask("/sleep?level=1", {}, timeout=self.settings.request_timeout)
            self._asleep = {"weights", "kv_cache"}

    def wake(self) -> None:
        """Memory is there again."""
        self._wake({"weights", "kv_cache"})

    def close(self) -> None:
        """Ends what is ours."""
        if hasattr(self, "fleet"):
            self.fleet.close()
        if self._keeper is not None:
            self._keeper.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, model: nn.Module) -> Place:
        mark = secrets.token_hex(8)
        if self.settings.urls:
            key = read_key(self.settings.api_key_env)
            addresses = [Address(url.rstrip("/"), key) for url in self.settings.urls]
            for address in addresses:
                if address.in_the_clear:
                    logger.warning("%s: the key and all rollouts travel unencrypted to that machine", address.url)
            return Place(tuple((address.url, key) for address in addresses), None, "", mark)
        self._folder = private_folder(self._bytes)
        server = VLLMServer(start_timeout=self.settings.start_timeout, owned_folders=[self._folder])
        try:
            write_config(model, server.home)
            server.arguments = _arguments(model, server.home, self.settings, self.mode)
            address = server.start()
            self._keeper = Keeper(server, self.settings.max_restarts, self._dress_again, watch=not self.alone)
        except BaseException:
            server.stop()
            raise
        return Place(((address.url, address.key),), server.home, socket.gethostname(), mark)

    def _guest(self, place: Place) -> Guest:
        assert place.home is not None
        if place.host != socket.gethostname() or not place.home.is_dir():
            raise RolloutError(
                f"the vLLM server runs on {place.host}, out of this rank's reach: start servers by hand "
                "(python -m rollouts.vllm_serve) and name them in ppo.rollout.vllm.urls"
            )
        return Guest(place.home, 2 * self.settings.start_timeout)

    def _check(self) -> list[dict[str, Any]]:
        """What the servers are, when they are what is needed."""
        found = []
        for server in self.fleet.servers:
            url = server.address.url
            try:
                answer = server.address.ask("/collective_rpc", {"method": "align_describe"}, timeout=SHORT)
            except ServerGone as gone:
                raise RolloutError(
                    f"the vLLM server {url} {gone}: is `python -m rollouts.vllm_serve` running there?"
                ) from None
            fact = answer["results"][0]
            self._compare(fact, url)
            found.append(fact)
        return found

    def _compare(self, fact: dict[str, Any], url: str) -> None:
        own = {
            "vocab_size": self._config.vocab_size,
            "hidden_size": self._config.hidden_size,
            "layers": self._config.num_hidden_layers,
        }
        for name, value in own.items():
            if fact[name] != value:
                raise RolloutError(
                    f"the vLLM server {url} holds another model: its {name} is {fact[name]}, the policy's is {value}"
                )
        if fact["max_model_len"] < self.settings.max_model_len:
            raise RolloutError(
                f"the vLLM server {url} takes {fact['max_model_len']} tokens, max_model_len asks for "
                f"{self.settings.max_model_len}: start it with --max-model-len {self.settings.max_model_len}"
            )
        if fact["logprobs"] != self.mode:
            kind = self.mode.removesuffix("_logprobs")
            raise RolloutError(f"the vLLM server {url} must be started with --logprobs {kind} for this temperature")

    def _version(self) -> str:
        assert self._push is not None
        return f"{self._mark}-{self._push.version}"

    def _dress_all(self) -> None:
        """Gives the pushed weights to every server, those that were left out too."""
        for server in self.fleet.servers:
            turn = self._turn()
            try:
                self._dress(server)
                server.lost = None
            except ServerGone as gone:
                self._recover(server, turn, str(gone))
        self.fleet.live()

    def _dress(self, server: Server) -> None:
        push, ask, url = self._push, server.address.ask, server.address.url
        if push is None:
            return
        self._wake({"weights"})
        ask("/update_weight_version", {"new_version": f"{self._mark}-changing"}, timeout=SHORT)
        call = {"method": "align_pull", "args": [str(push.folder), push.files, push.digest]}
        for result in ask("/collective_rpc", call, timeout=self.settings.request_timeout)["results"]:
            if result["problem"] is not None:
                state = "are undefined now" if result["undefined"] else "are the old ones"
                raise RolloutError(
                    f"the vLLM server {url} did not take the weights of version {push.version}, its own {state}: "
                    f"{result['problem']}"
                )
        self._reset_cache(server)
        ask("/update_weight_version", {"new_version": self._version()}, timeout=SHORT)

    def _reset_cache(self, server: Server) -> None:
        """Keys and values of older weights must not be read; the server refuses while it still works."""
        deadline = time.monotonic() + SHORT
        while not server.address.ask("/reset_prefix_cache", {}, timeout=SHORT)["success"]:
            if time.monotonic() > deadline:
                raise RolloutError(f"the vLLM server {server.address.url} is busy with somebody else's requests")
            time.sleep(0.05)

    def _dress_again(self) -> None:
        self._asleep = set()
        self._follow(self.fleet.servers[0])
        self._dress(self.fleet.servers[0])

    def _refresh(self, server: Server) -> None:
        """Another rank may have done it already."""
        try:
            if server.address.ask("/weight_info", timeout=SHORT)["weight_version"] != self._version():
                self._dress(server)
        except ServerGone as gone:
            self._recover(server, self._turn(), str(gone))

    def _turn(self) -> int:
        return 0 if self._keeper is None else self._keeper.turn

    def _failed(self, server: Server, turn: int) -> None:
        if self._keeper is not None:
            self._keeper.cut(turn)

    def _recover(self, server: Server, turn: int, reason: str) -> None:
        if self._keeper is not None:
            self._keeper.recover(turn, reason)
            self._follow(server)
            return
        url = server.address.url
        self._strikes[url] = self._strikes.get(url, 0) + 1
        logger.warning("the vLLM server %s %s (failure %d)", url, reason, self._strikes[url])
        if self._strikes[url] < STRIKES:
            time.sleep(PAUSE)
            self._refresh(server)
        else:
            self._strikes[url], server.lost = 0, reason

    def _follow(self, server: Server) -> None:
        """An own server on a port has another one after a restart."""
        assert self._keeper is not None
        server.address = Address(self._keeper.url, server.address.key)

    def _wake(self, tags: set[str]) -> None:
        if asleep := sorted(tags & self._asleep):
            query = "&".join(f"tags={tag}" for tag in asleep)
            self.fleet.servers[0].address.ask(f"/wake_up?{query}", {}, timeout=self.settings.request_timeout)
            self._asleep -= set(asleep)


def _arguments(model: nn.Module, folder: Path, settings: VLLMSettings, mode: str) -> list[str]:
    """Of `python -m rollouts.vllm_serve`."""
    words = ["--model", str(folder), "--load-format", "dummy", "--dtype", dtype_of(model, settings)]
    words += ["--max-model-len", str(room_for(model, settings)), "--memory-share", str(settings.memory_share)]
    words += ["--tensor-parallel", str(settings.tensor_parallel), "--max-num-seqs", str(settings.max_num_seqs)]
    words += ["--seed", str(settings.seed), "--logprobs", mode.removesuffix("_logprobs")]
    words += [] if settings.kv_cache_gib is None else ["--kv-cache-gib", str(settings.kv_cache_gib)]
    words += [] if settings.prefix_caching else ["--no-prefix-caching"]
    words += ["--eager"] if settings.eager else []
    words += ["--sleep"] if settings.sleep else []
    return words


def drain(stream: Iterable[Any]) -> None:
    """Reads to the end and keeps nothing."""
    for _ in stream:
        pass
