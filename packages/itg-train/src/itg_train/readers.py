"""Reading videos in processes of their own, so that training never waits for Python's lock.

Decoding lets go of the lock and takes it back for every frame; a training process that is at
starting a kernel then waits for it, thousands of times a step. With a dozen videos being read in
threads, steps of a small network took 1.1 s on a GPU, and 0.24 with readers.

A reader is this module as a program: a request is a line of JSON on its stdin, the answer a line of
JSON on its stdout and then the frames' bytes. It imports no torch, so it starts in half a second,
and it ends when its stdin does, however the run ended.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import LifoQueue
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from itg_data.errors import ItgError, VideoError
from itg_data.sampling import SamplingConfig

from itg_train.index import VideoFacts, look_at
from itg_train.squares import Squares, describe_failure, read_squares

ReadSquares = Callable[[Path, SamplingConfig, int], Squares]
"""`read_squares`, or a way to have it done."""

_READY = b"ready\n"
"""What a reader says first: one that ends before it has is no fault of any file."""


class Readers:
    """Processes that read; started when they are needed. Close them.

    Args:
        num_readers: Videos read at once; further callers wait.
    """

    def __init__(self, num_readers: int) -> None:
        self._idle: LifoQueue[subprocess.Popen[bytes] | None] = LifoQueue()
        for _ in range(num_readers):
            self._idle.put(None)
        self._num_readers = num_readers
        self._closed = False

    def read(self, path: Path, sampling: SamplingConfig, size: int) -> Squares:
        """As `read_squares`; any number of threads may call it.

        Raises:
            VideoError: The file cannot be decoded, or a process died of it.
            ItgError: No process can be started.
            RuntimeError: The readers are closed.
        """
        request = {"path": str(path), "sampling": asdict(sampling), "size": size}
        with self._reader(path) as reader:
            answer = _ask(reader, request)
            return Squares(
                frames=_receive(reader, answer["shape"]),
                time_s=np.array(answer["time_s"]),
                num_missing=answer["num_missing"],
            )

    def look(self, root: Path, video: str) -> VideoFacts:
        """As `look_at`; any number of threads may call it.

        Raises:
            VideoError: A process died of the file.
            ItgError: No process can be started.
            RuntimeError: The readers are closed.
        """
        with self._reader(root / video) as reader:
            return VideoFacts(**_ask(reader, {"root": str(root), "video": video})["facts"])

    @contextmanager
    def _reader(self, path: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A process that is at nothing else, to be asked about a file."""
        reader = self._idle.get()
        try:
            if self._closed:
                raise RuntimeError("the readers are closed")
            if reader is not None and reader.poll() is not None:
                # it died while it did nothing, which is no fault of this file
                _end(reader)
                reader = None
            reader = reader or _start()
            yield reader
        except (BrokenPipeError, EOFError):
            assert reader is not None, "nothing is asked of a reader that did not start"
            status, reader = _end(reader), None
            raise VideoError(str(path), f"its reader died with exit status {status}") from None
        except VideoError:
            raise
        except BaseException:
            # the rest of an answer may be in its pipe: the next file would get it, and a reader
            # that waits for somebody to take it never ends
            if reader is not None:
                reader.kill()
                _end(reader)
                reader = None
            raise
        finally:
            self._idle.put(reader)

    def close(self) -> None:
        """Ends the processes, each as soon as it has read what it reads; who waits is sent away."""
        self._closed = True
        readers = [self._idle.get() for _ in range(self._num_readers)]
        for reader in readers:
            if reader is not None:
                _end(reader)
            self._idle.put(None)


def _start() -> subprocess.Popen[bytes]:
    # -P: a user's json.py in the working directory is not the library's
    command = [sys.executable, "-P", "-m", "itg_train.readers"]
    # a group of its own: a terminal's Ctrl-C is for the run, which then ends its readers
    reader = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
    )
    # what a library prints while it is imported comes before
    if not any(line == _READY for line in _streams(reader)[1]):
        raise ItgError(
            f"no process that reads videos can be started: `{shlex.join(command)}` ended with exit "
            f"status {_end(reader)}; what it said is above"
        )
    return reader


def _end(reader: subprocess.Popen[bytes]) -> int:
    """Lets a process end, and gives its exit status."""
    requests, answers = _streams(reader)
    with suppress(BrokenPipeError):
        requests.close()
    status = reader.wait()
    answers.close()
    return status


def _streams(reader: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    return cast(IO[bytes], reader.stdin), cast(IO[bytes], reader.stdout)


def _ask(reader: subprocess.Popen[bytes], request: dict[str, Any]) -> dict[str, Any]:
    requests, answers = _streams(reader)
    requests.write(json.dumps(request).encode() + b"\n")
    requests.flush()
    line = answers.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    if "reason" in answer:
        raise VideoError(answer["path"], answer["reason"])
    return answer


def _receive(reader: subprocess.Popen[bytes], shape: list[int]) -> npt.NDArray[np.uint8]:
    frames = np.empty(shape, dtype=np.uint8)
    # a buffered reader fills the array, or the process is gone
    if cast(Any, _streams(reader)[1]).readinto(frames.data.cast("B")) != frames.size:
        raise EOFError
    return frames


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    answers.write(_READY)
    answers.flush()
    for line in requests:
        answer, frames = _answer(json.loads(line))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(frames)
        answers.flush()


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What goes back: an object, and the bytes of frames after it."""
    if "video" in request:
        return {"facts": asdict(look_at(Path(request["root"]), request["video"]))}, b""
    sampling = SamplingConfig(**request["sampling"])
    try:
        squares = read_squares(Path(request["path"]), sampling, request["size"])
    except VideoError as error:
        return {"path": error.path, "reason": error.reason}, b""
    except Exception as error:
        # what a file does to a decoder costs that file, not the reader as well
        return {"path": request["path"], "reason": describe_failure(error)}, b""
    facts = {"time_s": squares.time_s.tolist(), "num_missing": squares.num_missing}
    frames = np.ascontiguousarray(squares.frames).data
    return {"shape": squares.frames.shape} | facts, frames


def _take_stdout() -> IO[bytes]:
    """This process's stdout, for answers alone: what a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    try:
        _serve(sys.stdin.buffer, _take_stdout())
    except BrokenPipeError:
        # the run is over: nobody wants an answer
        sys.exit(1)
