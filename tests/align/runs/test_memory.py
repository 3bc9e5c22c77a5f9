from align.runs.memory import peak_memory_gib


def test_peak_memory_is_that_of_this_process():
    assert 0.01 < peak_memory_gib() < 64
