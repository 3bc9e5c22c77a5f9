import math

import pytest
import torch

from rollouts import probe
from rollouts.errors import RolloutError

BF16, F32 = torch.bfloat16, torch.float32


def test_the_sequence_is_fixed_plain_and_fits():
    ids = probe.probe_ids(300, 4096, {256, 257, 258})
    assert len(ids) == probe.LENGTH > 128 and not {256, 257, 258} & set(ids)
    assert ids == probe.probe_ids(300, 4096, {256, 257, 258})
    assert set(ids) <= set(range(300)) and len(set(ids)) > 100
    assert len(probe.probe_ids(300, 40)) + probe.DRAWN + 1 == 40
    for vocabulary, room in ((300, 4), (3, 40)):
        with pytest.raises(RolloutError, match="too few to compare"):
            probe.probe_ids(vocabulary, room, {0, 1, 2})


def test_the_coarser_precision_says_how_far():
    assert probe.tolerance((F32, F32)) < 0.01 < probe.tolerance((F32, torch.float16)) < probe.tolerance((BF16, F32))
    assert probe.tolerance((BF16, F32), 0.05) == 0.05


def test_differences():
    found = probe.Difference.of([-1.0, -2.0, -3.0, -4.0], [-1.0, -2.5, -3.0, -4.25], [-3.0, -4.5])
    assert (found.scored, found.drawn, found.largest) == (0.5, 0.25, 0.5)
    assert probe.Difference.of([-1.0], [-3.0], None) == probe.Difference(2.0, 0.0)
    assert probe.Difference.of([math.nan, -1.0], [-3.0, -1.0], None).largest == math.inf
    with pytest.raises(RolloutError, match="scored 1 tokens where 2"):
        probe.Difference.of([-1.0], [-1.0, -2.0], None)


def test_too_far_is_said_with_step_cause_and_remedy():
    probe.check(probe.Difference(1e-4, 1e-3), 1e-3, 7, (F32, F32))
    with pytest.raises(RolloutError) as said:
        probe.check(probe.Difference(0.75, 0.8), 0.5, 7, (BF16, F32))
    for words in ("step 7's", "0.8 nats", "0.5 allowed", "bfloat16 and float32", "left out", "engine: hf"):
        assert words in str(said.value)
    with pytest.raises(RolloutError, match=r"prefix cache .*prefix_caching: false"):
        probe.check(probe.Difference(1e-4, 0.7), 0.5, 7, (F32, F32))
    with pytest.raises(RolloutError, match="inf nats"):
        probe.check(probe.Difference(math.inf, 0.0), 0.5, 7, (F32, F32))
