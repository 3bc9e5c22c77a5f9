import platform
import sys

import pytest
import torch

from align.runtime.errors import OutOfMemoryError
from align.runtime.memory import memory_errors, peak_memory_gib
from tests.commands import INSTALLED, run


def test_peak_memory_is_that_of_this_process():
    assert 0.01 < peak_memory_gib() < 64


FAULTS = """
import resource
from align.runtime.memory import keep_freed_memory
print(keep_freed_memory())
def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for size in 1 << 24, 1 << 26:
    faults(size)
    print(faults(size))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize(("told", "kept"), [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "100000"}, False)])
def test_freed_blocks_are_used_again_unless_the_environment_says_otherwise(told, kept):
    """Ten times the same 16 MiB, and 64, which go back to the system; pages have 2 MiB at most."""
    done = run(sys.executable, "-c", FAULTS, env=INSTALLED | told)
    said, faults, of_large = done.stdout.split()
    assert said == str(kept) and (int(faults) < 60) == kept and int(of_large) > 60


SHORT = [
    lambda: torch.empty(1 << 60),  # torch's own on a CPU
    lambda: bytearray(1 << 62),
    lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")),
]


@pytest.mark.parametrize("ask", SHORT)
def test_every_lack_of_memory_is_one_error_with_what_to_lower(ask):
    told = r"^x ran out of memory \(.+\): lower a \(3\) or b$"
    with pytest.raises(OutOfMemoryError, match=told) as caught, memory_errors("x", "a (3)", "b"):
        ask()
    assert caught.value.__cause__ is not None


def test_other_errors_pass_and_the_innermost_keys_stand():
    with pytest.raises(RuntimeError, match="something else"), memory_errors("x", "a"):
        raise RuntimeError("something else")
    inner = pytest.raises(OutOfMemoryError, match=r"^inner .*lower b$")
    with inner, memory_errors("outer", "a"), memory_errors("inner", "b"):
        raise MemoryError
