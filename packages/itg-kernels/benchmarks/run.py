"""Measures the operations of itg-kernels beside their competitors; one JSONL row per measurement.

    uv run --package itg-kernels --group test python packages/itg-kernels/benchmarks/run.py

The package's tests run first, and red tests mean no numbers. Without a GPU only the torch
backends run, to try the script out.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cases
import torch
from timing import Quantiles, Timer, num_rotations

HERE = Path(__file__).parent
PACKAGE = HERE.parent

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measures, prints and, if asked to, writes rows down."""
    options = _parse(argv)
    if not options.no_tests and not _tests_are_green():
        print("The tests are red: no numbers.", file=sys.stderr)
        return 1
    rows = list(_written(measure(options), options.out))
    _print_table(rows)
    if options.base:
        _print_comparison(rows, _rows_of_base(options))
    return 0


def _written(rows: Iterator[Row], path: Path | None) -> Iterator[Row]:
    """The rows, each on disk before the next is measured: what an interrupted run has is kept."""
    for row in rows:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        yield row


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--op", choices=list(JOBS), action="append", help="only this one; may be repeated"
    )
    parser.add_argument("--provider", action="append", help="only this one; may be repeated")
    parser.add_argument("--base", metavar="REF", help="measure this commit's kernels as well")
    parser.add_argument("--quick", action="store_true", help="the main shapes only, fewer repeats")
    parser.add_argument("--out", type=Path, help="append rows to this file")
    parser.add_argument("--no-tests", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.op = options.op or list(JOBS)
    return options


def _tests_are_green() -> bool:
    if importlib.util.find_spec("pytest") is None:
        raise SystemExit("The tests cannot run without pytest (uv run --group test): no numbers.")
    command = [sys.executable, "-m", "pytest", "-q", str(PACKAGE / "tests")]
    environment = dict(os.environ)
    if torch.cuda.is_available():
        environment["ITG_REQUIRE_GPU"] = "1"
    code = subprocess.run(command, env=environment, cwd=PACKAGE, check=False).returncode
    # 0 is green and 1 is red; all else, a conftest that does not load among it, is neither.
    if code not in (0, 1):
        raise SystemExit(f"The tests did not run (pytest exits with {code}): no numbers.")
    return code == 0


def provenance(copy_gb_per_s: float) -> Row:
    """What every row says about where it comes from."""
    cuda = torch.cuda.is_available()
    return {
        "copy_gb_per_s": round(copy_gb_per_s, 1),
        "gpu": torch.cuda.get_device_name() if cuda else f"none ({platform.machine()} CPU)",
        "driver": _shell("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "package_version": _version("itg-kernels"),
        "git_sha": os.environ.get("ITG_GIT_SHA") or _shell("git", "rev-parse", "HEAD"),
        "dirty": _is_dirty(),
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # Run from a source tree that is not installed: the version stands in its pyproject.
        lines = (PACKAGE / "pyproject.toml").read_text().splitlines()
        found = next((line for line in lines if line.startswith("version = ")), 'version = "?"')
        return found.split('"')[1] if package == "itg-kernels" else "absent"


def _shell(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip().splitlines()[0] if result.stdout.strip() else "unknown"


def _is_dirty() -> bool:
    if "ITG_GIT_SHA" in os.environ:
        return os.environ.get("ITG_GIT_DIRTY") == "1"
    # What is measured, and what measures it; not the rows, which every run may add to.
    measured = (str(PACKAGE / "src"), str(HERE / "*.py"))
    return _shell("git", "status", "--porcelain", "--", *measured) != "unknown"


def _commit_of(ref: str) -> str:
    """A branch moves on; its rows stay those of one commit."""
    return _shell("git", "rev-parse", "--verify", f"{ref}^{{commit}}")


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """All rows that the options ask for; what cannot run gives a row that says why."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    timer = Timer(device)
    common = provenance(timer.copy_gb_per_s())
    for op in options.op:
        for job in JOBS[op](device, options):
            for row in _rows(timer, options, job):
                done = {"op": op, **row, **common}
                print(_line(done), file=sys.stderr, flush=True)
                yield done


@dataclass(frozen=True, kw_only=True)
class Job:
    """One provider on one shape; `prepare` makes the call, and may fail."""

    provider: str
    shape: str
    num_bytes: int
    prepare: Callable[[], Callable[[int], Any]]
    graph_calls: int
    dtype: str = "bfloat16"


def _score_jobs(device: str, options: argparse.Namespace) -> Iterator[Job]:
    for case in cases.SCORE_CASES[: 2 if options.quick else None]:
        sets = _score_sets(case, device)
        for name, make in _chosen(cases.score_providers(case), case, options):
            yield Job(
                provider=name,
                shape=case.shape,
                num_bytes=sets[0][0].nbytes + 4 * case.num_frames,
                prepare=partial(_score_call, make, sets),
                graph_calls=3 * len(sets),
            )


def _score_call(make: cases.Make, sets: list[cases.Inputs]) -> Callable[[int], Any]:
    score = make()
    return torch.no_grad()(lambda i: score(*sets[i % len(sets)]))


def _train_jobs(device: str, options: argparse.Namespace) -> Iterator[Job]:
    """Forward and backward from the gradient of the logits."""
    for case in cases.SCORE_CASES[: 1 if options.quick else None]:
        sets = _score_sets(case, device, gradients=True)
        for name, make in _chosen(cases.score_providers(case), case, options):
            yield Job(
                provider=name,
                shape=case.shape,
                num_bytes=3 * sets[0][0].nbytes,
                prepare=partial(_train_call, make, sets, case.num_frames),
                graph_calls=len(sets),
            )


def _train_call(
    make: cases.Make, sets: list[cases.Inputs], num_frames: int
) -> Callable[[int], Any]:
    score = make()
    grad = torch.randn(num_frames, device=sets[0][0].device)
    grad = grad.to(score(*sets[0]).dtype)

    def call(i: int) -> Any:
        inputs = sets[i % len(sets)]
        return torch.autograd.grad(score(*inputs), inputs[:4], grad)

    return call


def _loss_train_jobs(device: str, options: argparse.Namespace) -> Iterator[Job]:
    """Forward and backward from the loss."""
    for case in cases.SCORE_CASES[: 1 if options.quick else None]:
        sets = _score_sets(case, device, gradients=True)
        labels = (torch.arange(case.num_frames, device=device) % 7 == 0).float()
        for name, make in _chosen(cases.loss_providers(case, labels), case, options):
            yield Job(
                provider=name,
                shape=case.shape,
                num_bytes=3 * sets[0][0].nbytes,
                prepare=partial(_loss_train_call, make, sets),
                graph_calls=len(sets),
            )


def _loss_train_call(make: cases.Make, sets: list[cases.Inputs]) -> Callable[[int], Any]:
    loss = make()

    def call(i: int) -> Any:
        inputs = sets[i % len(sets)]
        return torch.autograd.grad(loss(*inputs), inputs[:4])

    return call


def _topk_jobs(device: str, options: argparse.Namespace) -> Iterator[Job]:
    for i, case in enumerate(cases.TOPK_CASES[: 2 if options.quick else None]):
        num_bytes = 4 * case.num_rows * case.num_frames + 8 * case.num_rows * (case.k + 1)
        sets = [
            torch.randn(case.num_rows, case.num_frames, device=device)
            for _ in range(num_rotations(num_bytes))
        ]
        for name, make in _chosen(cases.topk_providers(case.k), None if i < 2 else case, options):
            yield Job(
                provider=name,
                shape=case.shape,
                num_bytes=num_bytes,
                prepare=partial(_topk_call, make, sets),
                graph_calls=20,
                dtype="float32",
            )


def _topk_call(make: cases.Make, sets: list[torch.Tensor]) -> Callable[[int], Any]:
    choose = make()
    return lambda i: choose(sets[i % len(sets)])


def _select_jobs(device: str, options: argparse.Namespace) -> Iterator[Job]:
    """Scoring and top-k as the model calls them: one video, k = 32."""
    case = cases.SCORE_CASES[0]
    sets = _score_sets(case, device)
    pairs = {
        "itg-triton": "itg-triton",
        "torch-compile-rewritten": "torch-topk-sort",
        "torch-eager": "torch-topk-sort",
    }
    for name, make in _chosen(cases.score_providers(case), case, options):
        if name in pairs:
            yield Job(
                provider=name,
                shape=f"{case.shape}/k32",
                num_bytes=sets[0][0].nbytes,
                prepare=partial(_select_call, make, cases.topk_providers(32)[pairs[name]], sets),
                graph_calls=3 * len(sets),
            )


def _select_call(
    make_score: cases.Make, make_topk: cases.Make, sets: list[cases.Inputs]
) -> Callable[[int], Any]:
    score, choose = make_score(), make_topk()
    return torch.no_grad()(lambda i: choose(score(*sets[i % len(sets)])[None]))


JOBS: dict[str, Callable[[str, argparse.Namespace], Iterator[Job]]] = {
    "frame_score": _score_jobs,
    "frame_score_train": _train_jobs,
    "frame_score_loss_train": _loss_train_jobs,
    "topk": _topk_jobs,
    "select": _select_jobs,
}


def _score_sets(case: cases.ScoreCase, device: str, gradients: bool = False) -> list[cases.Inputs]:
    """Input sets that share the weights; their hidden states take turns."""
    inputs = cases.score_inputs(case, device, torch.bfloat16)
    count = num_rotations(inputs[0].nbytes) if device == "cuda" else 1
    sets = [(torch.roll(inputs[0], i, 0), *inputs[1:]) for i in range(count)]
    if gradients:
        for tensor in (t for one in sets for t in one[:4]):
            tensor.requires_grad_()
    return sets


def _chosen(
    providers: dict[str, cases.Make], case: Any, options: argparse.Namespace
) -> Iterator[tuple[str, cases.Make]]:
    compiled = case is None or getattr(case, "name", None) in cases.COMPILED_CASES
    for name, make in providers.items():
        wanted = not options.provider or name in options.provider
        if wanted and (compiled or not name.startswith("torch-compile")):
            yield name, make


def _rows(timer: Timer, options: argparse.Namespace, job: Job) -> Iterator[Row]:
    """A cold row and a graph row."""
    repeats = 30 if options.quick else 100
    runs: dict[str, Callable[[Callable[[int], Any]], Quantiles]] = {
        "eager": lambda call: timer.cold(call, repeats)
    }
    if timer.device == "cuda":
        runs["graph"] = lambda call: timer.in_graph(call, job.graph_calls, repeats // 2)
    head = {"provider": job.provider, "shape": job.shape, "dtype": job.dtype}
    try:
        call = job.prepare()
        call(0)
    except Exception as error:  # a competitor that is missing or broken is a result, too
        yield {**head, "mode": "eager", "cache": "cold", "absent": _reason(error)}
        return
    for mode, run in runs.items():
        cache = "cold" if mode == "eager" else "rotating"
        try:
            quantiles = run(call)
        except Exception as error:
            yield {**head, "mode": mode, "cache": cache, "absent": _reason(error)}
            if timer.device == "cuda":
                torch.cuda.synchronize()
            continue
        yield {
            **head,
            "mode": mode,
            "cache": cache,
            "p20_us": round(quantiles.p20_us, 2),
            "p50_us": round(quantiles.p50_us, 2),
            "p80_us": round(quantiles.p80_us, 2),
            "gb_per_s": round(job.num_bytes / quantiles.p50_us / 1e3, 1),
        }


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[
        :200
    ]


def _line(row: Row) -> str:
    head = f"{row['op']:24} {row['shape']:22} {row['mode']:6} {row['provider']:26}"
    if "absent" in row:
        return f"{head} absent: {row['absent']}"
    share = 100 * row["gb_per_s"] / row["copy_gb_per_s"]
    return (
        f"{head} {row['p20_us']:9.2f} {row['p50_us']:9.2f} {row['p80_us']:9.2f} us"
        f" {row['gb_per_s']:8.1f} GB/s {share:5.1f} % of copy"
    )


def _print_table(rows: list[Row]) -> None:
    for row in rows:
        print(_line(row))


def _rows_of_base(options: argparse.Namespace) -> list[Row]:
    """The same measurements, by this script, of the kernels as they are at another commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree, out = Path(folder) / "tree", Path(folder) / "rows.jsonl"
        add = ["git", "worktree", "add", "--detach", str(tree), options.base]
        subprocess.run(add, check=True, cwd=HERE, stdout=subprocess.DEVNULL)
        try:
            command = [sys.executable, __file__, "--no-tests", "--out", str(out)]
            command += ["--provider", "itg-triton", "--provider", "itg-torch"]
            command += [part for op in options.op for part in ("--op", op)]
            command += ["--quick"] if options.quick else []
            source = tree / "packages" / "itg-kernels" / "src"
            commit = _commit_of(options.base)
            environment = {**os.environ, "PYTHONPATH": str(source), "ITG_GIT_SHA": commit}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            return [json.loads(line) for line in out.read_text().splitlines()]
        finally:
            remove = ["git", "worktree", "remove", "--force", str(tree)]
            subprocess.run(remove, check=True, cwd=HERE)


def _print_comparison(rows: list[Row], base_rows: list[Row]) -> None:
    def key(row: Row) -> tuple[str, ...]:
        return tuple(row[name] for name in ("op", "provider", "mode", "shape", "dtype"))

    base = {key(row): row for row in base_rows if "p50_us" in row}
    for row in rows:
        before = base.get(key(row))
        if before and "p50_us" in row:
            ratio = before["p50_us"] / row["p50_us"]
            name = " ".join(key(row))
            print(f"{name}: {before['p50_us']:.2f} -> {row['p50_us']:.2f} us ({ratio:.3f} x)")


if __name__ == "__main__":
    sys.exit(main())
