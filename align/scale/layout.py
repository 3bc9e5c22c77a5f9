"""How the work lies on the cards, as keys of the recipe and an answer of the launcher; what the trainers would refuse.

The refusals repeat no rule: each names the module that raises it, and a test has the trainer raise it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from align.plan.ppo_models import shares_backbone
from align.plan.shapes import Shape
from align.recipe import Recipe
from align.scale.cards import Cluster

Sharding = Literal["one", "ddp", "fsdp2"]
URL = "https://engine-{}:8000"  # of a server on cards of its own, to be replaced
WORDS = {"one": "one process", "ddp": "DDP", "fsdp2": "FSDP2"}


@dataclass(frozen=True, slots=True)
class Layout:
    """Ranks that train, and where replies come from.

    Attributes:
        sharding: one rank; DDP, each with every model; FSDP2.
        servers: vLLM servers; 0: every rank samples by itself.
        tensor_parallel: cards of a server.
        shared: servers are on the cards that train, and hold their weights and cache there all the time (only a server
            of one rank's own sleeps); else on cards of their own.
    """

    cluster: Cluster
    ranks: int
    sharding: Sharding
    servers: int = 0
    tensor_parallel: int = 1
    shared: bool = False

    @property
    def sharded(self) -> bool:
        """Whether models are spread over the ranks."""
        return self.sharding == "fsdp2"

    @property
    def engines(self) -> int:
        """How many sample at once."""
        return self.servers or self.ranks

    @property
    def engine_cards(self) -> int:
        """Cards that train nothing."""
        return 0 if self.shared else self.servers * self.tensor_parallel

    @property
    def training_nodes(self) -> int:
        """Machines that ranks are on."""
        return -(-self.ranks // self.cluster.cards_per_node)

    @property
    def idle(self) -> int:
        """Cards without any work."""
        return self.cluster.cards - self.ranks - self.engine_cards

    @property
    def words(self) -> str:
        """`16 ranks, FSDP2; 4 vLLM servers of 4 cards each`."""
        ranks = WORDS[self.sharding] if self.ranks == 1 else f"{self.ranks} ranks, {WORDS[self.sharding]}"
        if not self.servers:
            engine = "an engine in each" if self.ranks > 1 else "the engine in it"
        else:
            place = "on the same cards" if self.shared else "beside"
            each = "" if self.tensor_parallel == 1 else f" of {self.tensor_parallel} cards"
            engine = f"{self.servers} vLLM server{'s' if self.servers > 1 else ''}{each} {place}"
        return f"{ranks}; {engine}" + (f"; {self.idle} cards idle" if self.idle > 0 else "")

    def samples_ahead(self, recipe: Recipe) -> bool:
        """Whether coming batches are sampled beside an update, which takes cards of its own."""
        return recipe.ppo.rollout.overlap > 0 and self.engine_cards > 0

    def keys(self, recipe: Recipe) -> dict[str, Any]:
        """What of the recipe it sets, by dotted key."""
        if self.cluster.card.name == "CPU":
            return {} if recipe.ppo is None else {"ppo.rollout.engine": "hf"}
        wide = recipe.model.dtype == "float32" and recipe.model.mixed_precision == "no"
        found: dict[str, Any] = {"model.mixed_precision": "bf16"} if wide else {}  # the peak is bfloat16's
        if recipe.ppo is None:
            return found
        if recipe.model.dtype == "float32":
            found |= {"ppo.rollout.vllm.dtype": "bfloat16"}
        if not self.servers:
            none = {"ppo.rollout.vllm.urls": []} if recipe.ppo.rollout.vllm.urls else {}
            return found | {"ppo.rollout.engine": "vllm"} | none
        urls = [URL.format(number) for number in range(self.servers)]
        parallel = {"ppo.rollout.vllm.tensor_parallel": self.tensor_parallel} if self.tensor_parallel > 1 else {}
        return found | {"ppo.rollout.engine": "vllm_server", "ppo.rollout.vllm.urls": urls} | parallel


def layouts(recipe: Recipe, cluster: Cluster, policy: Shape | None) -> Iterator[Layout]:
    """Every layout of the cards, whether it fits or not; `policy`: the shape of ppo's, where there is a ppo."""
    for ranks, servers, parallel, shared in _shares(cluster, policy):
        for sharding in ("one",) if ranks == 1 else ("ddp", "fsdp2"):
            yield Layout(cluster, ranks, sharding, servers, parallel, shared)


def _shares(cluster: Cluster, policy: Shape | None) -> Iterator[tuple[int, int, int, bool]]:
    """(ranks, servers, cards of a server, whether they are the ranks')."""
    cards = cluster.cards
    for ranks in range(cards, 0, -1):  # some batches cannot be cut into all of them
        if ranks == cards or (2 * ranks > cards and (cluster.nodes == 1 or ranks % cluster.cards_per_node == 0)):
            yield ranks, 0, 1, False
    if policy is None or cluster.card.name == "CPU":
        return
    one, heads = cluster.cards_per_node, policy.num_attention_heads
    parallels = [number for number in (1, 2, 4, 8) if one % number == 0 and heads % number == 0]
    yield from ((cards, cards // parallel, parallel, True) for parallel in parallels if parallel > 1)
    engine_cards = [one * nodes for nodes in range(1, cluster.nodes)] or [n for n in (1, 2, 4) if n < one]
    for beside in engine_cards:
        yield from ((cards - beside, beside // number, number, False) for number in parallels if beside % number == 0)


def refusal(recipe: Recipe, layout: Layout) -> str | None:
    """Why the trainers would not start so, or None."""
    ppo = recipe.ppo
    if not layout.sharded:
        return None
    if recipe.model.adapter == "qlora":
        return "FSDP2 does not shard 4-bit weights: use DDP"
    sections = [getattr(recipe, stage).optimizers() for stage in recipe.stages]
    named = sorted({one.optimizer for found in sections for one in found.values() if one.optimizer != "adamw"})
    if named:  # align.trainers.optimization.require_whole
        return f"optimizer={named[0]} does not know parameters that FSDP2 shards: use adamw, or DDP"
    if ppo is None:
        return None
    if shares_backbone(recipe):  # align.trainers.sharding.prepare
        return "roles on one backbone cannot be sharded by FSDP2: use DDP, or ppo.shared_backbone=false"
    if ppo.offload:  # align.trainers.offload.Offload
        return "ppo.offload moves whole models, which FSDP2 shards: leave it out, or use DDP"
    if ppo.rollout.exact and ppo.rollout.engine != "hf":  # align.trainers.ppo.exact.check_exact
        return "ppo.rollout.exact with vLLM has every rank pass alone, which sharded models cannot: use DDP"
    return None
