"""A server that answers as it is told to, and videos and questions to annotate with it."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from itg_data.annotate.config import RunConfig
from itg_data.annotate.openai_client import ServerConfig
from itg_data.annotate.records import QaPair
from itg_data.annotate.requests import Sampler
from itg_data.jsonl import write_jsonl

MODEL = "told-what-to-say"


@dataclass
class Asked:
    """A request as it arrived."""

    stage: str
    system: str
    text: str
    inputs: dict[str, Any]
    num_pictures: int
    body: dict[str, Any]
    headers: dict[str, str]
    before: int
    """Requests of the same stage that arrived before."""
    number: int
    """Its place among all requests, from 0."""


@dataclass
class Reply:
    """What the server says to it."""

    content: str | None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    raw: bytes | None = None
    """Sent instead of all that."""


def sensible(asked: Asked) -> dict[str, Any]:
    return {
        "cues": {"cues": ["red square", "pattern"]},
        "caption": {"caption": f"A red square in {asked.num_pictures} pictures."},
        "retrieve": {"explanation": "Clip 0 shows it.", "clips": [0]},
        "classify": {"motion": True, "existence": False},
        "check": {"relevant": [True] * asked.num_pictures},
    }[asked.stage]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    Reply = Reply
    sensible = staticmethod(sensible)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply: Callable[[Asked], Reply | dict[str, Any]] = sensible
        self.asked: list[Asked] = []
        self.answered: Counter[str] = Counter()
        """How often each body got an answer."""
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def stages(self) -> Counter[str]:
        return Counter(asked.stage for asked in self.asked)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps quiet about clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(raw)
        system, user = body["messages"]
        text = user["content"][0]["text"]
        asked = Asked(
            stage=system["content"].split()[1],
            system=system["content"],
            text=text,
            inputs=json.loads(text.split("<data>")[1].split("</data>")[0]),
            num_pictures=len(user["content"]) - 1,
            body=body,
            headers={name.lower(): value for name, value in self.headers.items()},
            before=0,
            number=0,
        )
        with self.server.lock:
            asked.before = self.server.stages[asked.stage]
            asked.number = len(self.server.asked)
            self.server.asked.append(asked)
        reply = self.server.reply(asked)
        if isinstance(reply, dict):
            reply = Reply(json.dumps(reply))
        message = {"role": "assistant", "content": reply.content, "refusal": reply.refusal}
        data = json.dumps(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": MODEL,
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
            }
            if reply.status == 200
            else {"error": {"message": reply.content}}
        ).encode()
        data = reply.raw or data
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        # counted first: whoever reads the answer may look at the count at once
        if reply.status == 200:
            with self.server.lock:
                self.server.answered[raw.decode()] += 1
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Keeps quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    """An annotator behind HTTP; set its `reply` to have it say something else."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory, encode_video: Callable[..., Path]) -> Path:
    """A folder with `long.mp4`, 12 s in 3 clips, and `short.mp4`, 2 s; read only."""
    folder = tmp_path_factory.mktemp("videos")
    encode_video(folder / "long.mp4", num_frames=300, options={"g": "50"})
    encode_video(folder / "short.mp4", num_frames=50)
    return folder


def pair(number: int = 0, video: str = "long.mp4", **changes: Any) -> QaPair:
    fields = {"question": f"Where does square {number} go?", "answer": "To the right."}
    return QaPair(**{"id": f"q{number}", "video": video, **fields, **changes})


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., QaPair]:
    """Makes QA pairs: `make_pair(3, video=..., question=...)`."""
    return pair


@pytest.fixture
def make_config(server: Server, videos: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """Makes a run's config: `make_config([pair, ...], concurrency=...)`."""

    def make(pairs: list[QaPair], **changes: Any) -> RunConfig:
        write_jsonl(tmp_path / "qa.jsonl", pairs)
        defaults: dict[str, Any] = {
            "videos": videos,
            "qa": tmp_path / "qa.jsonl",
            "out": tmp_path / "set",
            "annotator": ServerConfig(base_url=server.base_url, max_retries=1),
            "sampler": Sampler(model=MODEL),
        }
        return RunConfig(**{**defaults, **changes})

    return make
