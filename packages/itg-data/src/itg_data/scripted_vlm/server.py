"""The HTTP side: a threaded server that answers, counts, and fails as often as it is told to.

Faults of the line (429, 503, a dropped connection, a delay) are drawn anew at each attempt, so
asking again helps; what the model itself gets wrong (noise, refusals, malformed JSON) is drawn from
the request, so only another request helps. The standard library serves: nothing to install, and
its connections can be dropped in the middle.
"""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, cast

import numpy as np

from itg_data.scripted_vlm.answers import Judge, answer
from itg_data.scripted_vlm.protocol import (
    MODEL,
    BadRequestError,
    ChatRequest,
    Said,
    completion,
    count_tokens,
    error_body,
    read_request,
)
from itg_data.scripted_vlm.sight import ScriptedSet

logger = logging.getLogger(__name__)

Fault = Literal["rate_limits", "server_errors", "drops", "delays"]

_MAX_BODY_BYTES = 64 << 20
_REFUSAL = "I'm sorry, but I can't help with that."


@dataclass(frozen=True, kw_only=True, slots=True)
class Behaviour:
    """How the model and its server misbehave; each rate is a probability, 0 for never."""

    noise: float = 0.0
    """Judgements that are wrong: an object mistaken, a clip or a frame wrongly taken or left."""

    refusals: float = 0.0
    """Answers that are a refusal."""

    malformed: float = 0.0
    """Answers that are no JSON, or JSON without what was asked for."""

    rate_limits: float = 0.0
    """Attempts that get status 429 with `Retry-After`."""

    server_errors: float = 0.0
    """Attempts that get status 503."""

    drops: float = 0.0
    """Attempts whose connection ends before the answer, or in the middle of it."""

    delays: float = 0.0
    """Attempts that are answered late."""

    delay_s: float = 2.0
    """How late."""

    retry_after_s: float = 0.05
    """What `Retry-After` asks for."""

    takes_schema: bool = True
    """Whether `response_format` with a JSON schema is understood; refused with 400 where not."""

    seed: int = 0
    """Everything drawn follows from it and from what is asked."""

    def __post_init__(self) -> None:
        rates = ("noise", "refusals", "malformed", "rate_limits", "server_errors", "drops")
        for name in (*rates, "delays"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"behaviour.{name} must be in 0..1, got {getattr(self, name)}")
        for name in ("delay_s", "retry_after_s", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"behaviour.{name} must be >= 0, got {getattr(self, name)}")


class Tally:
    """What was asked and what came of it; `snapshot` is what `GET /stats` answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("requests", "answered", "faults", "tokens")
        }
        self._attempts: Counter[bytes] = Counter()
        self._answered: Counter[bytes] = Counter()
        self._images = self._unknown_images = self._open = self._most_open = 0

    @contextmanager
    def attempt(self, request: ChatRequest) -> Generator[int]:
        """Counts an attempt, and gives how many there were of the same request before."""
        with self._lock:
            before = self._attempts[request.digest]
            self._attempts[request.digest] += 1
            self._counts["requests"][request.stage] += 1
            self._open += 1
            self._most_open = max(self._most_open, self._open)
        try:
            yield before
        finally:
            with self._lock:
                self._open -= 1

    def fault(self, name: str) -> None:
        """Counts something that went wrong on purpose."""
        with self._lock:
            self._counts["faults"][name] += 1

    def looked(self, num_unknown: int) -> None:
        """Counts pictures that are of no scripted video."""
        with self._lock:
            self._unknown_images += num_unknown

    def answered(self, request: ChatRequest, usage: dict[str, int]) -> None:
        """Counts a request that got the model's answer, good or bad."""
        with self._lock:
            self._answered[request.digest] += 1
            self._counts["answered"][request.stage] += 1
            self._counts["tokens"].update(usage)
            self._images += len(request.images)

    def snapshot(self) -> dict[str, Any]:
        """Gives all counts as JSON."""
        with self._lock:
            return {
                **{name: dict(counts) for name, counts in self._counts.items()},
                "answered_again": sum(self._answered.values()) - len(self._answered),
                "images": self._images,
                "unknown_images": self._unknown_images,
                "most_at_once": self._most_open,
            }


class ScriptedServer(ThreadingHTTPServer):
    """A server that listens as soon as it is made; `serve_forever` or `running` answers.

    Args:
        scripted: The set whose frames it recognises.
        behaviour: How it misbehaves.
        host: Address to listen on.
        port: 0 for any free one.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self,
        scripted: ScriptedSet,
        behaviour: Behaviour | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.scripted = scripted
        self.behaviour = behaviour or Behaviour()
        self.tally = Tally()
        super().__init__((host, port), _Handler)

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as `base_url`."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/v1"

    @contextmanager
    def running(self) -> Generator[str]:
        """Answers on a thread while the block runs; yields `base_url`."""
        thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self.base_url
        finally:
            self.shutdown()
            self.server_close()
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is."""
        logger.info("connection of %s ended", client_address, exc_info=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    body: dict[str, Any]
    status: int = 200
    retry_after_s: float | None = None
    part_sent: float | None = None
    """Share of the body that is sent before the connection ends; None for all of it."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: ScriptedServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            entry = {"id": MODEL, "object": "model", "created": 0, "owned_by": "itg"}
            self._send(_Answer(body={"object": "list", "data": [entry]}))
        elif self.path == "/stats":
            self._send(_Answer(body=self.server.tally.snapshot()))
        else:
            self._send(_no_such(self.path))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MAX_BODY_BYTES:
            self.close_connection = True
            body = error_body("Content-Length must be there and below 64 MiB", "invalid", "length")
            self._send(_Answer(body=body, status=413))
            return
        body = self.rfile.read(int(length))
        if self.path != "/v1/chat/completions":
            self._send(_no_such(self.path))
            return
        try:
            request = read_request(body, takes_schema=self.server.behaviour.takes_schema)
            with self.server.tally.attempt(request) as before:
                self._send(_respond(self.server, request, before))
        except BadRequestError as error:
            body = error_body(str(error), "invalid_request_error", error.code)
            self._send(_Answer(body=body, status=error.status))

    def _send(self, answer: _Answer) -> None:
        if answer.part_sent == 0:
            self.close_connection = True
            return
        data = json.dumps(answer.body).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if answer.retry_after_s is not None:
            self.send_header("Retry-After", f"{answer.retry_after_s:g}")
        self.end_headers()
        if answer.part_sent is not None:
            self.close_connection = True
            data = data[: int(len(data) * answer.part_sent)]
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _no_such(path: str) -> _Answer:
    body = error_body(f"there is no {path!r:.80} here", "invalid_request_error", "not_found")
    return _Answer(body=body, status=404)


def _respond(server: ScriptedServer, request: ChatRequest, before: int) -> _Answer:
    """Answers an attempt, or fails at it."""
    behaviour, tally = server.behaviour, server.tally
    line = _rng(behaviour.seed, request.digest, before + 1)

    def strikes(name: Fault) -> bool:
        struck = bool(line.random() < getattr(behaviour, name))
        if struck:
            tally.fault(name)
        return struck

    if strikes("delays"):
        time.sleep(behaviour.delay_s)
    if strikes("rate_limits"):
        body = error_body("Rate limit reached; try again later.", "requests", "rate_limit_exceeded")
        return _Answer(body=body, status=429, retry_after_s=behaviour.retry_after_s)
    if strikes("server_errors"):
        return _Answer(body=error_body("Overloaded.", "server_error", "overloaded"), status=503)
    drops, part_sent = strikes("drops"), 0.5 * line.integers(2)
    said = _say(server, request)
    if said.fault:
        tally.fault(said.fault)
    if not drops:
        tally.answered(request, count_tokens(request, said.text))
    body = completion(request, said, created=int(time.time()))
    return _Answer(body=body, part_sent=part_sent if drops else None)


def _say(server: ScriptedServer, request: ChatRequest) -> Said:
    """Finds the model's words, the same whenever the same is asked."""
    behaviour, rng = server.behaviour, _rng(server.behaviour.seed, request.digest, 0)
    inputs = request.look(server.scripted)
    server.tally.looked(sum(sight is None for sight in inputs.sightings))
    # drawn in this order whatever the rates, so that one rate does not change another's draws
    refuses, garbles = rng.random(), rng.random()
    text = json.dumps(answer(request.stage, inputs, Judge(behaviour.noise, rng)))
    if refuses < behaviour.refusals:
        return Said(text=_REFUSAL, fault="refusals")
    return _garbled(text, rng) if garbles < behaviour.malformed else Said(text=text)


def _garbled(text: str, rng: np.random.Generator) -> Said:
    fields = cast("dict[str, Any]", json.loads(text))
    ways = (
        Said(text=text[: len(text) // 2], fault="malformed", finish_reason="length"),
        Said(text=text.replace('"', "'"), fault="malformed"),
        Said(text=json.dumps({"result": "done"}), fault="malformed"),
        Said(text="Certainly! Here is what I can see in the pictures.", fault="malformed"),
        Said(text=json.dumps(dict.fromkeys(fields)), fault="malformed"),
    )
    return ways[rng.integers(len(ways))]


def _rng(seed: int, digest: bytes, attempt: int) -> np.random.Generator:
    words = np.frombuffer(digest[:16], dtype=np.uint32).tolist()
    return np.random.default_rng([seed, attempt, *words])
