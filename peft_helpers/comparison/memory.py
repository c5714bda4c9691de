"""How much memory a piece of work takes at its peak."""

import ctypes
import gc
import platform
import threading

import psutil
import torch

INTERVAL = 0.01  # seconds: a training step takes longer


class PeakMemory:
    """A context whose ``megabytes`` (10^6 bytes) is what was taken at the peak on top of what was there before.

    On CUDA it is what torch's allocator held; elsewhere the resident memory of this process, looked at a hundred times
    a second.
    """

    def __enter__(self) -> "PeakMemory":
        _release_unused_memory()
        self._done = threading.Event()
        self._start = self._peak = self._used()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._done.set()
        self._thread.join()
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else max(self._peak, self._used())
        self.megabytes = (peak - self._start) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL):
            self._peak = max(self._peak, self._used())

    @staticmethod
    def _used() -> int:
        return torch.cuda.memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss


def _release_unused_memory() -> None:
    """Give back what earlier work has freed: resident still, it would hide what the next takes."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
