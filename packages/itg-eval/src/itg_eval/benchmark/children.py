"""Programs that this one starts and that must not outlive it, however it ends.

A run that is killed with SIGKILL cannot tidy up, and a host model that goes on in the background
holds the GPU and writes into files that the next start writes as well. So the kernel is asked to
end the child when its parent dies.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_END = 20.0

_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""What a launcher tells its processes; ours are started by us, or by a launcher of their own."""


def to_launcher(module: str, num_processes: int) -> list[str]:
    """The command that runs a Python module, in one process or in several that find each other."""
    command = [sys.executable, "-m"]
    if num_processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
        command.append("-m")
    return [*command, module]


def run_child(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    stdout: IO[str] | None = None,
    stderr: IO[str] | None = None,
    watch: Callable[[], None] | None = None,
) -> int:
    """Runs a program to its end.

    Args:
        command: Program and arguments.
        env: Added to this process's environment, without what a launcher left in that.
        stdout: Where its output goes; None for where this process's goes.
        stderr: The same for its complaints.
        watch: Called about once a second.

    Returns:
        Its exit status.
    """
    libc, parent = ctypes.CDLL(None), os.getpid()

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    inherited = {name: value for name, value in os.environ.items() if name not in _RANKS}
    process = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=stderr,
        env={**inherited, **env},
        preexec_fn=end_with_parent,
    )
    try:
        while True:
            try:
                return process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                if watch is not None:
                    watch()
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
