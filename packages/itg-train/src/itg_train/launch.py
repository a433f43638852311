"""Starting and recognising the processes of a run.

`itg-train --nproc N` starts N of its own. Those that torchrun or the deepspeed launcher started
find their place in the environment variables that both set; those that SLURM's srun started, in
SLURM's, which are turned into the others here.
"""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

_WORKER = "ITG_TRAIN_WORKER"
"""Set for processes that `start_workers` started: they end when it does."""

GRACE_S = 10.0
"""What the others may take to end after one has failed."""


def start_workers(arguments: Sequence[str], num_processes: int) -> int:
    """Runs `itg-train` with the same arguments in several processes on this machine.

    When one fails, the others are stopped; when this process goes, they go.

    Returns:
        The exit status of the first that failed, or 0.
    """
    port = _free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "itg_train", *arguments],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(num_processes),
                "LOCAL_WORLD_SIZE": str(num_processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                _WORKER: "1",
            },
            # never written to: it ends when this process does, however that comes
            stdin=subprocess.PIPE,
        )
        for rank in range(num_processes)
    ]
    try:
        return _wait(workers)
    except KeyboardInterrupt:
        # the terminal has told the workers as well
        _stop(workers, signal.SIGINT)
        return 130
    finally:
        _stop(workers, signal.SIGTERM)


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    running = set(range(len(workers)))
    while running:
        for rank in sorted(running):
            try:
                status = workers[rank].wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
            running.discard(rank)
            if status != 0:
                _say_killed(workers)
                _stop(workers, signal.SIGTERM)
                return status if status > 0 else 128 - status
    return 0


def _say_killed(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """What was killed could not say so itself, and another may have failed of it before we saw."""
    for rank, worker in enumerate(workers):
        status = worker.poll()
        if status is None or status >= 0:
            continue
        how = f"signal {-status}, {signal.strsignal(-status)}"
        cause = " Did memory run out?" if -status == signal.SIGKILL else ""
        sys.stderr.write(
            f"itg-train: process {rank} was ended by {how}.{cause} The same command goes on from "
            "the last saved state, if any\n"
        )


def _stop(workers: Sequence[subprocess.Popen[bytes]], how: signal.Signals) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(how)
    for worker in workers:
        try:
            worker.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdin:
            worker.stdin.close()


def end_with_parent() -> None:
    """In a process of `start_workers`: ends it as soon as its parent is gone, killed perhaps."""
    if os.environ.get(_WORKER) != "1":
        return

    def wait() -> None:
        # not through sys.stdin, whose lock the interpreter wants when it ends
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def lost_another(error: RuntimeError) -> bool:
    """Whether torch says that another process of the run is gone."""
    return "gloo/transport" in str(error)


def find_place(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that say which process of a run this one is.

    Args:
        environment: `os.environ`.

    Returns:
        Variables to add to it: none where they are all there, those that follow from SLURM's in a
        task of `srun`, or those of a single process.

    Raises:
        ValueError: SLURM's variables contradict one another, or a launcher's are not all there or
            are no numbers that agree.
    """
    place = _find_place(environment)
    _check_numbers({**environment, **place})
    return place


def is_first(environment: Mapping[str, str]) -> bool:
    """Whether this process is the first of a run, or the only one; also where nobody can say."""
    try:
        return {**environment, **find_place(environment)}["RANK"] == "0"
    except ValueError:
        # `find_place` is asked again by who needs the place, and says it
        return True


def _find_place(environment: Mapping[str, str]) -> dict[str, str]:
    if "RANK" in environment:
        _require_all(environment)
        return {}
    # a batch script has most of SLURM's variables too, but is no task of a step
    if "SLURM_STEP_ID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        return _from_slurm(environment)
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def _check_numbers(place: Mapping[str, str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not place.get(name, "0").isdecimal():
            raise ValueError(f"{name} must be a whole number, got {place[name]!r}")
    if int(place["RANK"]) >= int(place["WORLD_SIZE"]):
        raise ValueError(
            f"RANK must be below WORLD_SIZE ({place['WORLD_SIZE']}), got {place['RANK']}; "
            "processes are counted from 0"
        )


def _require_all(environment: Mapping[str, str]) -> None:
    needed = ["WORLD_SIZE"]
    if environment.get("WORLD_SIZE", "1") != "1":
        needed += ["MASTER_ADDR", "MASTER_PORT"]
    if missing := [name for name in needed if name not in environment]:
        raise ValueError(
            f"RANK is set without {' and '.join(missing)}: a launcher sets all of them; unset RANK "
            "to run alone"
        )


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise ValueError("SLURM_STEP_ID is set, but SLURM_STEP_NODELIST is not")
    if "SLURM_PROCID" not in environment:
        raise ValueError("SLURM_STEP_ID is set, but SLURM_PROCID is not")
    # all tasks of a job come to the same port, and jobs that share a node to different ones
    port = 20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000
    place = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_node(nodes),
        "MASTER_PORT": str(port),
    }
    return {name: environment.get(name, value) for name, value in place.items()}


def first_node(nodes: str) -> str:
    """The first host of SLURM's list, such as `gpu[007-010,12],login` -> `gpu007`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    if match is None:
        raise ValueError(f"no host in SLURM's list of nodes {nodes!r}")
    name, number, suffix = match.groups()
    return name + (number or "") + (suffix or "")


def _free_port() -> int:
    """A port of this machine that nobody listens on.

    Seconds pass before a worker does. So it is not of those from 32768 on, which Linux hands out to
    whoever asks for any.
    """
    # the seed of a run, or of a test, would have all choose alike
    for port in random.SystemRandom().sample(range(20000, 32768), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free from 20000 to 32767")
