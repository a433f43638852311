"""Sweeps the kernels' launch configurations on a GPU and prints the best of each.

Nothing is tuned at run time: what this finds is written into `ForwardConfig`, `BackwardConfig`
and `topk.num_warps_for` by hand, so that every process runs the same kernels.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import torch
from itg_kernels import score_backward, score_forward, topk
from timing import Timer, num_rotations

Config = dict[str, Any]


def forward_configs() -> Iterator[Config]:
    """Whole rows in registers, 2 to 8 at a time; and rows in steps, a warp each."""
    for block_rows, num_warps, num_stages in itertools.product((1, 2, 4), (4, 8), (1, 3)):
        yield {"block_rows": block_rows, "num_warps": num_warps, "num_stages": num_stages}
    yield {"block_rows": 4, "num_warps": 8, "max_registers": 64}
    yield {"block_rows": 8, "num_warps": 8}
    yield {"block_rows": 8, "num_warps": 16}
    yield {"block_rows": 4, "num_warps": 16}
    yield {"block_rows": 2, "num_warps": 16}
    yield {"block_rows": 4, "num_warps": 4, "max_block_d": 512}
    yield {"block_rows": 4, "num_warps": 4, "max_block_d": 1024}
    yield {"block_rows": 8, "num_warps": 8, "max_block_d": 512}


def slice_configs() -> Iterator[Config]:
    """How finely long frames are cut."""
    for block_rows, rows_per_item in itertools.product((2, 4), (8, 16, 32, 64, 128)):
        yield {"block_rows": block_rows, "rows_per_item": rows_per_item}


def backward_configs() -> Iterator[Config]:
    """Columns are cut freely too: narrow programs need no padding of D to a power of two."""
    shapes = [
        (4, 512, 2), (8, 512, 2), (2, 1024, 4), (4, 1024, 4), (8, 1024, 4), (4, 1024, 2),
        (4, 2048, 8), (2, 4096, 8), (4, 4096, 16), (4, 256, 1), (8, 256, 1),
    ]  # fmt: skip
    for (block_rows, max_block_d, num_warps), programs in itertools.product(shapes, (1, 2, 4)):
        yield {
            "block_rows": block_rows,
            "max_block_d": max_block_d,
            "num_warps": num_warps,
            "programs_per_sm": programs,
        }
    for block_rows, stages in itertools.product((2, 4), (2, 3)):
        yield {"block_rows": block_rows, "num_stages": stages}
    for columns in (8, 16, 64):
        yield {"finish_columns": columns}


def forward_calls(case: cases.ScoreCase, save: bool) -> Callable[[Config], Callable[[int], Any]]:
    """Makes the call that runs the forward kernels under a configuration."""
    inputs = cases.score_inputs(case, "cuda", torch.bfloat16)
    hidden = [torch.roll(inputs[0], i, 0) for i in range(num_rotations(inputs[0].nbytes))]

    def make(config: Config) -> Callable[[int], Any]:
        chosen = score_forward.ForwardConfig(**config)
        return lambda i: score_forward.score_forward(
            hidden[i % len(hidden)], None, *inputs[1:], cases.EPS, save, chosen
        )

    return make


def backward_calls(case: cases.ScoreCase) -> Callable[[Config], Callable[[int], Any]]:
    """As `forward_calls`, for the backward kernels."""
    inputs = cases.score_inputs(case, "cuda", torch.bfloat16)
    hidden = [torch.roll(inputs[0], i, 0) for i in range(num_rotations(inputs[0].nbytes))]
    logits, saved = score_forward.score_forward(hidden[0], None, *inputs[1:], cases.EPS, True)
    grad = torch.randn_like(logits)

    def make(config: Config) -> Callable[[int], Any]:
        chosen = score_backward.BackwardConfig(**config)
        return lambda i: score_backward.score_backward(
            grad, None, hidden[i % len(hidden)], None, *inputs[1:4], saved, chosen
        )

    return make


SHAPE_FIELDS = ("block_rows", "max_block_d", "num_warps", "programs_per_sm", "num_stages")


def _shape(*values: int, max_registers: int | None = None) -> Config:
    fields = dict(zip(SHAPE_FIELDS, values, strict=True), max_registers=max_registers)
    return {f"b.{name}": value for name, value in fields.items()}


TRAIN_STAGES: list[list[Config]] = [
    [{"f.num_warps": warps, "f.num_stages": stages} for warps in (2, 4) for stages in (3, 4)],
    [
        _shape(2, 512, 2, 2, 2),
        *(_shape(2, 512, 2, n, 2, max_registers=72) for n in (1, 2)),
        *(_shape(2, 512, 2, n, 3) for n in (1, 2)),
        *(_shape(1, 512, 1, n, 3) for n in (2, 4)),
        *(_shape(4, 512, 2, 1, n) for n in (1, 2, 3)),
        *(_shape(2, 1024, 4, 2, n) for n in (2, 3)),
        _shape(2, 1024, 4, 1, 3),
        *(_shape(4, 1024, 4, n, 1) for n in (1, 2)),
        _shape(8, 1024, 4, 1, 1),
        *(_shape(2, 1024, 2, n, 1) for n in (1, 2)),
        *(_shape(1, 4096, 8, n, 1) for n in (2, 3, 4)),
        *(_shape(1, 4096, 8, n, 2) for n in (2, 3, 4)),
        *(_shape(1, 4096, 8, n, 3) for n in (2, 3)),
        *(_shape(2, 4096, 8, n, 1) for n in (1, 2, 3)),
        *(_shape(2, 4096, 16, n, 1) for n in (1, 2)),
        *(_shape(1, 4096, 4, n, 1) for n in (2, 4)),
    ],
    [
        {"b.finish_rows": rows, "b.finish_columns": columns, "b.finish_warps": warps}
        for rows, columns, warps in (
            (64, 8, 4), (128, 8, 4), (256, 8, 4), (512, 8, 4), (512, 8, 8), (256, 16, 4),
            (256, 16, 8), (512, 16, 8), (128, 32, 8), (256, 4, 4),
        )
    ],
]  # fmt: skip
"""Forward and backward together, which the cache ties: each stage builds on the best before."""


def train_calls(case: cases.ScoreCase) -> Callable[[Config], Callable[[int], Any]]:
    """As `forward_calls`, for a forward pass and the backward pass that follows it."""
    inputs = cases.score_inputs(case, "cuda", torch.bfloat16)
    hidden = [torch.roll(inputs[0], i, 0) for i in range(num_rotations(inputs[0].nbytes))]
    grad = torch.randn(case.num_frames, device="cuda")

    def make(config: Config) -> Callable[[int], Any]:
        chosen = {
            kind: {k.split(".")[1]: v for k, v in config.items() if k.startswith(kind)}
            for kind in "fb"
        }
        forward = score_forward.ForwardConfig(**chosen["f"])
        backward = score_backward.BackwardConfig(**chosen["b"])

        def call(i: int) -> Any:
            x = hidden[i % len(hidden)]
            _, saved = score_forward.score_forward(x, None, *inputs[1:], cases.EPS, True, forward)
            return score_backward.score_backward(grad, None, x, None, *inputs[1:4], saved, backward)

        return call

    return make


def refine(
    timer: Timer, name: str, stages: list[list[Config]], make: Callable[..., Any], calls: int
) -> Iterator[Config]:
    """Times each stage's changes on top of the best before, in a graph; checks the gradients."""
    best: Config = {}
    truth = make({})(0)
    for number, stage in enumerate(stages):
        results = []
        for change in stage:
            config = best | change
            try:
                call = make(config)
                for got, wanted in zip(call(0), truth, strict=True):
                    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=1e-3)
                timed = timer.in_graph(call, calls, 20)
                cold = timer.cold(call, 20).p50_us
            except Exception as error:
                print(f"{name} {config}: {type(error).__name__} {error}"[:200], flush=True)
                continue
            results.append({"sweep": f"{name} {number}", **config, "graph_us": timed.p50_us})
            yield results[-1] | {"graph_p20_us": timed.p20_us, "cold_us": cold}
        results.sort(key=lambda row: row["graph_us"])
        print(f"{name}, stage {number}: in-graph microseconds")
        for row in results[:8]:
            print(f"  {row['graph_us']:8.2f}  { {k: row[k] for k in stage[0]} }", flush=True)
        best |= {k: results[0][k] for k in stage[0]}
    print(f"{name}: {best}", flush=True)


def topk_calls(case: cases.TopkCase) -> Callable[[Config], Callable[[int], Any]]:
    """As `forward_calls`, for top-k."""
    scores = [torch.randn(case.num_rows, case.num_frames, device="cuda") for _ in range(32)]

    def make(config: Config) -> Callable[[int], Any]:
        gap = config.get("gap")
        warps = config["num_warps"]
        if gap is None:
            return lambda i: topk.topk(scores[i % 32], case.k, None, None, num_warps=warps)
        return lambda i: topk.topk_spaced(
            scores[i % 32], case.k, None, None, None, gap, num_warps=warps
        )

    return make


def sweeps() -> Iterator[tuple[str, list[Config], Callable[[Config], Callable[[int], Any]], int]]:
    """Name, configurations, how to call, calls per graph."""
    by_name = {case.name: case for case in cases.SCORE_CASES}
    yield "forward T512", list(forward_configs()), forward_calls(by_name["T512"], False), 18
    yield "forward T64", list(slice_configs()), forward_calls(by_name["T64"], False), 15
    yield "forward T256", list(slice_configs()), forward_calls(by_name["T256"], False), 15
    yield "forward packed", list(slice_configs()), forward_calls(by_name["packed"], True), 6
    yield "backward T512", list(backward_configs()), backward_calls(by_name["T512"]), 12
    warps = [{"num_warps": n, **gap} for gap in ({}, {"gap": 4}) for n in (1, 2, 4, 8, 16)]
    yield "topk 1x512/k32", warps, topk_calls(cases.TOPK_CASES[0]), 20
    yield "topk 256x4096/k64", warps[1:], topk_calls(cases.TOPK_CASES[1]), 20


def main(argv: list[str] | None = None) -> int:
    """Sweeps, prints the best of each, writes all down if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="sweeps whose name contains this")
    parser.add_argument("--out", type=Path, help="write all timings to this file")
    options = parser.parse_args(argv)
    timer = Timer("cuda")
    rows = []
    if not options.only or options.only in "train T512":
        case = cases.SCORE_CASES[0]
        rows += refine(timer, "train T512", TRAIN_STAGES, train_calls(case), 6)
    for name, configs, make, calls in sweeps():
        if options.only and options.only not in name:
            continue
        results = []
        for config in configs:
            try:
                graph = timer.in_graph(make(config), calls, 20).p50_us
                cold = timer.cold(make(config), 30).p50_us
            except Exception as error:  # a configuration that cannot launch is an answer
                print(f"{name} {config}: {type(error).__name__} {error}"[:150])
                continue
            results.append({"sweep": name, **config, "cold_us": cold, "graph_us": graph})
        rows += results
        print(f"{name}: best of {len(results)}, cold and in-graph microseconds")
        for row in sorted(results, key=lambda row: row["cold_us"] + row["graph_us"])[:6]:
            settings = {k: v for k, v in row.items() if k not in ("sweep", "cold_us", "graph_us")}
            print(f"  {row['cold_us']:8.2f} {row['graph_us']:8.2f}  {settings}", flush=True)
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
