"""Who brings a server its weights again, when several ranks see that it lacks them."""

from types import SimpleNamespace

import pytest

from rollouts.vllm import backend
from rollouts.vllm.backend import Backend


class Server:
    """Says in turn which weights it has."""

    def __init__(self, *versions: str):
        self.address, self.versions = self, list(versions)

    def ask(self, path: str, **_) -> dict[str, str]:
        assert path == "/weight_info"
        return {"weight_version": self.versions.pop(0)}


@pytest.mark.parametrize(
    ("versions", "dressed"),
    [
        (("mine-7",), 0),  # another rank has done it
        (("mine-changing", "mine-changing", "mine-7"), 0),  # another rank is at it
        (("mine-6",), 1),
        (("mine-changing", "default"), 1),  # the other rank's server died meanwhile
    ],
)
def test_weights_that_another_rank_brings_are_waited_for(monkeypatch, versions, dressed):
    monkeypatch.setattr(backend, "PAUSE", 0.0)
    own = Backend.__new__(Backend)
    own.settings, own._mark, own._push = SimpleNamespace(request_timeout=5.0), "mine", SimpleNamespace(version=7)
    calls = []
    own._dress = calls.append
    server = Server(*versions)
    own._refresh(server)
    assert len(calls) == dressed and not server.versions
