"""Time per call on a GPU, with a cold cache and as a part of a CUDA graph; quantiles, not means.

The cache is made cold by *reading* a buffer far larger than L2. Writing one, as is common, leaves
the cache full of dirty lines, and the call under test then pays for writing them back: on an H200
that is up to 60 MB on top of the 92 MB that a scoring call reads. Reading takes long enough for
the host to queue the whole call behind it, so no launch gap of the host's making is timed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

FLUSH_BYTES = 1 << 30
ROTATION_BYTES = 512 << 20


@dataclass(frozen=True)
class Quantiles:
    """Microseconds per call."""

    p20_us: float
    p50_us: float
    p80_us: float


def _quantiles(times_us: list[float]) -> Quantiles:
    values = torch.tensor(times_us, dtype=torch.float64)
    points = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return Quantiles(*values.quantile(points).tolist())


def num_rotations(bytes_per_call: int) -> int:
    """How many input sets make a round trip longer than the cache remembers; at most 64."""
    return min(64, max(2, -(-ROTATION_BYTES // max(bytes_per_call, 1))))


class Timer:
    """Times calls on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        size = FLUSH_BYTES // 4 if device == "cuda" else 0
        self._flush = torch.ones(size, device=device)

    def cold(self, call: Callable[[int], Any], repeats: int) -> Quantiles:
        """Each call by itself, after the cache was filled with something else."""
        if self.device != "cuda":
            return self._on_cpu(call, repeats)
        for i in range(5):
            call(i)
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        torch.cuda.synchronize()
        for i, (start, end) in enumerate(events):
            self._flush.sum()
            start.record()
            call(i)
            end.record()
        torch.cuda.synchronize()
        return _quantiles([start.elapsed_time(end) * 1e3 for start, end in events])

    def in_graph(self, call: Callable[[int], Any], calls: int, repeats: int) -> Quantiles:
        """Per call, of a graph of `calls` calls on rotating inputs."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for i in range(3):
                call(i)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(calls):
                call(i)
        quantiles = self.cold(lambda _: graph.replay(), repeats)
        return Quantiles(
            quantiles.p20_us / calls, quantiles.p50_us / calls, quantiles.p80_us / calls
        )

    def copy_gb_per_s(self) -> float:
        """Of a copy too large for any cache, counting bytes read and bytes written."""
        size = (2 << 30) if self.device == "cuda" else (64 << 20)
        source = torch.ones(size // 4, device=self.device)
        target = torch.empty_like(source)
        quantiles = self.cold(lambda _: target.copy_(source), 20)
        return 2 * size / quantiles.p50_us / 1e3

    @staticmethod
    def _on_cpu(call: Callable[[int], Any], repeats: int) -> Quantiles:
        call(0)
        times = []
        for i in range(repeats):
            start = time.perf_counter()
            call(i)
            times.append((time.perf_counter() - start) * 1e6)
        return _quantiles(times)
