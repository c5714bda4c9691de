import time

import numpy as np

from peft_helpers.comparison.memory import INTERVAL, PeakMemory


def hold(megabytes: int) -> None:
    """Take memory for longer than it takes to look at it, and give it back."""
    block = np.ones(megabytes * 10**6 // 8)
    time.sleep(5 * INTERVAL)
    del block


def test_the_peak_is_seen_though_it_is_given_back_in_between():
    with PeakMemory() as memory:
        hold(50)
    assert 45 < memory.megabytes < 80


def test_an_earlier_peak_does_not_count():
    blocks = [np.ones(1000) for _ in range(20_000)]  # 160 MB; small ones stay with the allocator when they are freed
    del blocks
    with PeakMemory() as memory:
        hold(20)
    assert 10 < memory.megabytes < 45
