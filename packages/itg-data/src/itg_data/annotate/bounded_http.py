"""HTTP with an end: an attempt takes no longer than it may, and an answer is no larger.

The client's own time-out is for the pause between two bytes; a server that sends one now and then
would hold a run up for ever, and one that sends without end would fill the memory.
"""

import asyncio
import importlib
from typing import Any

MAX_BODY_BYTES = 16 << 20


def bounded_client(timeout_s: float) -> Any:
    """Gives an HTTP client for `openai.AsyncOpenAI` whose attempts end.

    Args:
        timeout_s: For one attempt, from the first byte sent to the last one read.
    """
    import openai

    base: Any = openai.DefaultAsyncHttpxClient
    # the HTTP library has another name in newer versions of the client
    (of_library,) = (kind for kind in base.__mro__ if kind.__name__ == "AsyncClient")
    httpx: Any = importlib.import_module(of_library.__module__.partition(".")[0])

    class BoundedClient(base):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            try:
                async with asyncio.timeout(timeout_s):
                    response: Any = await base.send(self, request, stream=True, **options)
                    try:
                        body = await read(response)
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise httpx.ReadTimeout(
                    f"no whole answer in {timeout_s:g} s", request=request
                ) from None
            # as it came, but for what told how its body was packed
            packing = ("content-encoding", "content-length", "transfer-encoding")
            headers = [pair for pair in response.headers.multi_items() if pair[0] not in packing]
            return httpx.Response(
                response.status_code, headers=headers, content=body, request=response.request
            )

    async def read(response: Any) -> bytes:
        pieces: list[bytes] = []
        size = 0
        async for piece in response.aiter_bytes():
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise httpx.ReadError(
                    f"the answer is larger than {MAX_BODY_BYTES >> 20} MiB",
                    request=response.request,
                )
            pieces.append(piece)
        return b"".join(pieces)

    return BoundedClient(timeout=timeout_s)
