"""A server of the OpenAI protocol that answers at once: what is left is the pipeline's own cost.

It reads no more of a request than it must: how long it is, which stage it is of, and how many
pictures a check has. Run it in a process of its own; it prints its address.
"""

import asyncio
import json
import re

_STAGE = re.compile(rb'"name":\s*"(cues|caption|retrieve|classify|check)"')
_ANSWERS = {
    b"cues": {"cues": ["a moving pattern"]},
    b"caption": {"caption": "A pattern moves to the right, slowly at first and then faster."},
    b"retrieve": {"explanation": "The first clip shows it.", "clips": [0]},
    b"classify": {"motion": True, "existence": False},
}


class _Instant(asyncio.Protocol):
    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._needed: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._needed is None:
            head, end, _ = b"".join(self._parts).partition(b"\r\n\r\n")
            if not end:
                return
            length = re.search(rb"(?i)content-length:\s*(\d+)", head)
            self._needed = len(head) + 4 + int(length[1] if length else 0)
        if self._size < self._needed:
            return
        request = b"".join(self._parts)
        self._parts, self._size, self._needed = [], 0, None
        self._transport.write(_respond(request))  # pyright: ignore[reportAttributeAccessIssue]


def _respond(request: bytes) -> bytes:
    stage = _STAGE.findall(request[-4000:])[-1]
    answer = _ANSWERS.get(stage) or {"relevant": [True] * request.count(b'"data:image/jpeg')}
    message = {"role": "assistant", "content": json.dumps(answer)}
    body = json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "instant",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 1000, "completion_tokens": 30, "total_tokens": 1030},
        }
    ).encode()
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def serve() -> None:
    """Serves until it is killed."""
    server = await asyncio.get_running_loop().create_server(_Instant, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
