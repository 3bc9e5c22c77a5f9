"""Which share of a card's peak work reaches: stated where nothing was measured, from a probe where something was.

Stated are, of training 0.35 of bfloat16's peak: published for plain PyTorch on H100 are 0.22 (4 B parameters, 16k
tokens a step) to 0.37 (65k tokens) by prime-rl's own baselines. Passes without gradients and prefill have no optimizer
and larger batches, 0.45. A decode step of vLLM reads weights and cache at 0.65 of the memory's bandwidth, computes at
0.45 of the peak, and takes 2 ms besides (scheduler, sampler, start of the graph). Collectives reach 0.7 of the link.
All are guesses that a probe replaces.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

KINDS = ("training", "passes", "scoring", "prefill", "decode", "bandwidth", "link")


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of the peak, and seconds that do not depend on it.

    Attributes:
        training: of FLOPs, forward and backward. passes, scoring: without gradients, of the models of the
            experience and of rewards. prefill, decode: of an engine.
        bandwidth: of the memory's bytes a second. link: of those between cards.
        step: seconds of a decode step besides.
        hop: seconds of a collective's start, a layer of tensor parallelism has two.
        draw_layer, pass_layer, train_layer: seconds that a layer takes besides (the start of its kernels), in a decode
            step, in a pass, forward and backward; 0 where nobody has measured it.
        source: where they come from, in words.
    """

    training: float = 0.35
    passes: float = 0.45
    scoring: float = 0.45
    prefill: float = 0.45
    decode: float = 0.45
    bandwidth: float = 0.65
    link: float = 0.7
    step: float = 0.002
    hop: float = 10e-6
    draw_layer: float = 0.0
    pass_layer: float = 0.0
    train_layer: float = 0.0
    source: str = "stated, not measured"

    @property
    def words(self) -> str:
        """`training 0.35, passes 0.45, …`."""
        shares = ", ".join(f"{name} {getattr(self, name):.3g}" for name in KINDS)
        starts = (self.draw_layer, self.pass_layer, self.train_layer)
        layers = ", ".join(f"{1e6 * one:.3g}" for one in starts)
        besides = f"; a layer {layers} µs besides (drawing, passes, training)" if any(starts) else ""
        return f"{shares}; a decode step {1000 * self.step:.3g} ms besides{besides} ({self.source})"

    def as_data(self) -> dict[str, float | str]:
        """All of it, for JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


PEAK = Efficiency(1, 1, 1, 1, 1, 1, 1, 0, 0, source="the peak")  # what nothing reaches
