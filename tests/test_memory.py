import numpy as np

from peft_helpers.memory import PeakMemory


def test_the_peak_is_seen_though_it_is_given_back_in_between():
    with PeakMemory() as memory:
        block = np.ones(50_000_000 // 8)
        block.sum()
        del block
    assert 45 < memory.megabytes < 80


def test_an_earlier_peak_does_not_count():
    blocks = [np.ones(1000) for _ in range(20_000)]  # small ones stay with the allocator when they are freed
    del blocks
    with PeakMemory() as memory:
        np.ones(20_000_000 // 8).sum()
    assert 10 < memory.megabytes < 45
