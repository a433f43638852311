"""NVDEC sessions that outlive a video, because starting and ending one takes tens of milliseconds.

A session goes from one video to the next only where both name the same parameter sets: then the
second asks nothing of it that the first did not, no more surfaces and no other size. It is emptied
between them, so none of the first video's frames can come out among those of the second.
"""

import atexit
import ctypes
import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from itg_data.source import explain

# An H100 and an H200 have seven decoders; sessions beyond that share them.
DEFAULT_SESSIONS = 7

CODECS = {"h264": "H264", "hevc": "HEVC"}
"""What FFmpeg calls them, and what NVDEC does."""

# Ending a session takes its time; nobody waits for it.
_ending = ThreadPoolExecutor(1, thread_name_prefix="itg-nvdec-end")


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionKind:
    """What a session was started for, and may go on with."""

    device: int
    codec: str
    """A key of `CODECS`."""
    height: int
    width: int
    parameter_sets: bytes = field(repr=False)
    """As the container holds them. A session has the surfaces that its first video needs; one that
    needs more would come out wrong, and without a word."""


class Session:
    """An NVDEC session and the CUDA stream that it is bound to; for one thread at a time."""

    def __init__(self, decoder: Any, cuda_stream: Any) -> None:
        self.cuda_stream = cuda_stream
        self._decoder: Any = decoder
        self._is_empty = True
        self._is_sound = True

    def decode(self, packet: Any) -> list[Any]:
        """Decodes a packet, with start codes; frames that come out are gone at the next call."""
        data = nvc().PacketData()
        data.bsl, data.bsl_data, data.pts = packet.size, packet.buffer_ptr, packet.pts
        self._is_empty = False
        return self._decode(data)

    def flush(self) -> list[Any]:
        """Takes out what the session holds back; it then takes any packet."""
        frames = self._decode(nvc().PacketData())
        self._is_empty = True
        return frames

    def _decode(self, data: Any) -> list[Any]:
        try:
            return self._decoder.Decode(data)
        except BaseException:
            self._is_sound = False
            raise

    def distrust(self) -> None:
        """Keeps the session from going on with another video."""
        self._is_sound = False

    def settle(self) -> bool:
        """Throws away what the session holds back; whether it can go on with another video."""
        if self._is_sound and not self._is_empty:
            try:
                self.flush()
            except Exception:  # a session that fails is given up, and was not needed any more
                return False
        return self._is_sound

    def end(self) -> None:
        """Ends the session, which takes its time."""
        self._decoder = None


class SessionPool:
    """Sessions that wait for the next video; for any thread.

    Args:
        most: Sessions that wait at most, of all kinds; the longest idle goes first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[tuple[SessionKind, Session]] = []
        self._closed = False

    def take(self, kind: SessionKind) -> Session | None:
        """Takes a session; if none is of that kind, ends one of another, to make room for a new."""
        with self._lock:
            place = max((i for i, (k, _) in enumerate(self._idle) if k == kind), default=None)
            if place is not None:
                return self._idle.pop(place)[1]
            too_many = self._idle[:1]
            del self._idle[:1]
        _end_behind(too_many)
        return None

    def give_back(self, kind: SessionKind, session: Session) -> None:
        """Keeps a session for the next video, unless it failed or nothing tells what it can take.

        A session that was stopped halfway is emptied first.
        """
        keeps = bool(kind.parameter_sets) and session.settle()
        with self._lock:
            if keeps and not self._closed:
                self._idle.append((kind, session))
                too_many = self._idle[: -self._most]
                del self._idle[: -self._most]
            else:
                too_many = [(kind, session)]
        _end_behind(too_many)

    def clear(self) -> None:
        """Ends the sessions that wait, and waits for it."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, session in idle:
            session.end()

    def close(self) -> None:
        """Does the same, and ends what is given back from now on."""
        with self._lock:
            self._closed = True
        self.clear()


sessions = SessionPool(DEFAULT_SESSIONS)
# while the driver is still there
atexit.register(sessions.close)


def start_session(kind: SessionKind) -> Session:
    """Starts a session on a stream of high priority: its small copies do not wait behind others."""
    torch.cuda.set_device(kind.device)
    cuda_stream = torch.cuda.Stream(kind.device, priority=-1)
    # an idle stream: what counts is that this thread then works in torch's context
    cuda_stream.synchronize()
    decoder = nvc().CreateDecoder(
        gpuid=kind.device,
        codec=getattr(nvc().cudaVideoCodec, CODECS[kind.codec]),
        cudacontext=_current_context(),
        cudastream=cuda_stream.cuda_stream,
        usedevicememory=True,
    )
    return Session(decoder, cuda_stream)


def nvc() -> Any:
    """The untyped package itself, imported on first use: it needs the NVIDIA driver."""
    return importlib.import_module("PyNvVideoCodec")


def explain_missing() -> str | None:
    """Says what NVDEC lacks here; None where it can be had."""
    try:
        nvc()
    except (ImportError, RuntimeError) as error:
        return f"nvdec needs itg-model[nvdec] and an NVIDIA driver ({explain(error)})"
    return None


def _current_context() -> int:
    """The CUDA context that this thread works in, for sessions to share."""
    context = ctypes.c_void_p()
    ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context))
    return context.value or 0


def _end_behind(idle: list[tuple[SessionKind, Session]]) -> None:
    for _, session in idle:
        try:
            _ending.submit(session.end)
        except RuntimeError:  # the interpreter is ending, and its threads did
            session.end()
