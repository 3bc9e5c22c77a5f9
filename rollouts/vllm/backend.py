"""The servers behind `VLLMServerEngine`: asked, given weights, brought back when they fail, ended."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rollouts.errors import RolloutError
from rollouts.settings import VLLMSettings
from rollouts.vllm.fleet import Body, Fleet, Server
from rollouts.vllm.http import Address, ServerGone
from rollouts.vllm.keeper import Guest, Keeper
from rollouts.vllm.place import SHORT, Place, describe, given, own_place, reachable, start_own
from rollouts.vllm.push import Push, private_folder, write_push
from rollouts.vllm.start import plain_model
from rollouts.vllm.weights import checked
from rollouts.vllm.wire import made_by
from rollouts.weights import checkpoint_bytes, checkpoint_names

logger = logging.getLogger(__name__)

STRIKES = 2  # failures in a row after which a server given by URL is left out
PAUSE = 1.0  # seconds before a server given by URL is asked again


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
        self._shapes, config = checkpoint_names(model), plain_model(model).config.get_text_config()
        self._bytes = checkpoint_bytes(model)
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
                self._keeper = Guest(reachable(place), 2 * settings.start_timeout)
            facts = self.on_owner(
                lambda: [describe(server.address, config, settings, mode) for server in self.fleet.servers]
            )
        except BaseException:
            self.close()
            raise
        self.room: int = min(fact["max_model_len"] for fact in facts)
        self.on_cpu: bool = facts[0]["device"] == "cpu"
        for server, fact in zip(self.fleet.servers, facts, strict=True):
            server.at_once = fact["max_num_seqs"]

    def on_owner(self, action: Callable[[], Any]) -> Any:
        """What `action` gives on the owner, on every rank; what goes wrong there likewise, as RolloutError."""
        outcome = None
        if self.is_owner:
            try:
                outcome = (action(), None)
            except (RolloutError, OSError) as error:
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
            server, turn = self.fleet.servers[0], self._turn()
            try:
                self._reset_cache(server)
                server.address.ask("/sleep?level=1", {}, timeout=self.settings.request_timeout)
                self._asleep = {"weights", "kv_cache"}
            except ServerGone as gone:
                self._recover(server, turn, str(gone))

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
        if self.settings.urls:
            return given(self.settings)
        self._folder = private_folder(self._bytes)
        server = start_own(model, self.settings, self.mode, self._folder)
        self._keeper = Keeper(server, self.settings.max_restarts, self._dress_again, watch=not self.alone)
        return own_place(server)

    @property
    def _changing(self) -> str:
        return f"{self._mark}-changing"

    def _version(self) -> str:
        assert self._push is not None
        return f"{self._mark}-{self._push.version}"

    def _dress_all(self) -> None:
        """Gives the pushed weights to every server, those that were left out too."""
        for server in self.fleet.servers:
            server.lost, dressed = None, False
            while not dressed and server.lost is None:
                turn = self._turn()
                try:
                    self._dress(server)
                    dressed, self._strikes[server.address.url] = True, 0
                except ServerGone as gone:
                    self._recover(server, turn, str(gone))
        self.fleet.live()

    def _dress(self, server: Server) -> None:
        push, ask, url = self._push, server.address.ask, server.address.url
        if push is None:
            return
        self._wake({"weights"})
        ask("/update_weight_version", {"new_version": self._changing}, timeout=SHORT)
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
        """The pushed weights again, unless another rank has brought them, or brings them now."""
        deadline = time.monotonic() + self.settings.request_timeout
        try:
            found = server.address.ask("/weight_info", timeout=SHORT)["weight_version"]
            while found == self._changing and time.monotonic() < deadline:
                time.sleep(PAUSE)
                found = server.address.ask("/weight_info", timeout=SHORT)["weight_version"]
            if found != self._version():
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
            query, server, turn = "&".join(f"tags={tag}" for tag in asleep), self.fleet.servers[0], self._turn()
            try:
                server.address.ask(f"/wake_up?{query}", {}, timeout=self.settings.request_timeout)
            except ServerGone as gone:
                self._recover(server, turn, str(gone))  # a new server is awake
            self._asleep -= set(asleep)


def drain(stream: Iterable[Any]) -> None:
    """Reads to the end and keeps nothing."""
    for _ in stream:
        pass
