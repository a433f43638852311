"""An annotator behind HTTP: any server with the OpenAI protocol, through the official client.

The client repeats what may pass by itself (429, 5xx, time-outs, dropped connections), each time
after a longer pause or the one that the server asks for. What remains after that may be the fault
of that one request or of the server, and is tried out: a server that serves not even the smallest
request of the stage ends the run. Everything answered is kept, and the same command goes on from
there. Where others are served, the request alone is lost.
"""

import asyncio
import base64
import json
import logging
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

from itg_data.annotate.bounded_http import bounded_client
from itg_data.annotate.requests import (
    AnnotatorError,
    Answer,
    Failure,
    NoAnswerError,
    RejectedError,
    Request,
    Sampler,
    Stage,
)
from itg_data.annotate.smallest import smallest_request
from itg_data.errors import to_one_line

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

Structured = Literal["auto", "json-schema", "none"]

MISSING = "the annotator needs the OpenAI client: pip install 'itg-data[annotate]'"
_PROBE_RETRIES = 1
_MAX_TOKENS = 2**40
"""Of one answer; a larger count is no count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Where the annotator is, and how patiently it is asked."""

    base_url: str
    """Address of the API, such as http://localhost:8000/v1."""

    api_key: str = "none"
    """Most servers of one's own want none, but the client sends one."""

    max_retries: int = 8
    """Times that a request is repeated after a failure that may pass; pauses grow up to 8 s."""

    timeout_s: float = 300.0
    """How long one attempt at an answer may take, from the first byte to the last."""

    structured: Structured = "auto"
    """Whether the server is told the JSON schema of the answer; auto stops if it objects."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            shown = _without_secrets(self.base_url)
            raise ValueError(f"base_url must start with http:// or https://, got {shown!r}")
        try:
            parts = urlsplit(self.base_url)
            named = bool(parts.hostname) and parts.port != 0
        except ValueError:
            named = False
        if not named:
            raise ValueError(f"base_url must name a host, got {_without_secrets(self.base_url)!r}")
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            # neither shown here nor, by whoever would send it, in a complaint about a header
            raise ValueError("api_key must be printable ASCII; a line break, say, is none of a key")
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be >= 0, got {self.max_retries}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0, got {self.timeout_s}")

    @property
    def address(self) -> str:
        """The address as it may be shown and written down: without name, password and query."""
        parts = urlsplit(self.base_url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", ""))


class _UnservedError(Exception):
    """The server failed at a request, or said what cannot be read."""


class OpenAIAnnotator:
    """Asks a server that speaks the OpenAI protocol.

    Args:
        config: Where and how.
        sampler: How answers are drawn.

    Raises:
        AnnotatorError: The extra `itg-data[annotate]` is missing.
    """

    def __init__(self, config: ServerConfig, sampler: Sampler) -> None:
        try:
            import openai
        except ImportError:
            raise AnnotatorError(MISSING) from None
        self._openai = openai
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url,
            api_key=config.api_key,
            max_retries=config.max_retries,
            timeout=config.timeout_s,
            http_client=bounded_client(config.timeout_s),
        )
        self._config = config
        self._sampler = sampler
        self._sends_schema = config.structured != "none"
        self._served_s: dict[Stage, float] = {}
        """When the latest request that was served was sent, by stage."""
        self._serves_nobody = False
        self._turn_to_probe = asyncio.Lock()

    async def ask(self, request: Request[AnswerT], pictures: Sequence[bytes]) -> Answer:
        """Gets one answer; see `Annotator.ask`."""
        sent_s = time.monotonic()
        try:
            answer = await self._send_as_it_takes_it(request, pictures)
        except RejectedError as error:
            # what it ever took it takes: that it is there is not the question
            if await self._serves(request.stage, since_s=-math.inf):
                raise
            raise AnnotatorError(
                f"{self._config.address} rejects every {request.stage} request: {error}"
            ) from None
        except _UnservedError as error:
            if await self._serves(request.stage, since_s=time.monotonic()):
                failure = Failure(reason="server_error", detail=f"the server {error}")
                raise NoAnswerError(failure) from None
            raise AnnotatorError(f"{self._config.address} {error}") from None
        except NoAnswerError:
            self._note_served(request.stage, sent_s)
            raise
        self._note_served(request.stage, sent_s)
        return answer

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _note_served(self, stage: Stage, sent_s: float) -> None:
        self._served_s[stage] = max(sent_s, self._served_s.get(stage, sent_s))

    async def _serves(self, stage: Stage, since_s: float) -> bool:
        """Whether the server served any request of a stage that was sent since then.

        If none was, it is asked the smallest one.
        """
        async with self._turn_to_probe:
            if stage in self._served_s and self._served_s[stage] >= since_s:
                return True
            if self._serves_nobody:
                return False
            sent_s = time.monotonic()
            try:
                await self._send_as_it_takes_it(*smallest_request(stage), _PROBE_RETRIES)
            except (RejectedError, _UnservedError, AnnotatorError):
                self._serves_nobody = True
                return False
            except NoAnswerError:
                pass  # a short answer was cut off, but it is one
            self._note_served(stage, sent_s)
            return True

    async def _send_as_it_takes_it(
        self,
        request: Request[AnswerT],
        pictures: Sequence[bytes],
        max_retries: int | None = None,
    ) -> Answer:
        """Sends a request with its schema, or without where the server takes none."""
        if self._sends_schema:
            try:
                return await self._send(request, pictures, max_retries, with_schema=True)
            except RejectedError as error:
                if self._config.structured != "auto":
                    raise
                answer = await self._send(request, pictures, max_retries, with_schema=False)
                logger.warning(
                    "the server takes no JSON schema (%s); answers are parsed strictly", error
                )
                self._sends_schema = False
                return answer
        return await self._send(request, pictures, max_retries, with_schema=False)

    async def _send(
        self,
        request: Request[AnswerT],
        pictures: Sequence[bytes],
        max_retries: int | None,
        *,
        with_schema: bool,
    ) -> Answer:
        openai, client = self._openai, self._client
        if max_retries is not None:
            client = client.with_options(max_retries=min(max_retries, self._config.max_retries))
        body = self._to_body(request, pictures, with_schema=with_schema)
        try:
            # past the client's typed methods: they look at every part of a body and of an answer,
            # and take as long for it as for all the rest
            told = await client.post("/chat/completions", cast_to=bytes, body=body)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):
                raise RejectedError(self._one_line(error)) from None
            complaint = f"answers {error.status_code}: {self._one_line(error)}"
            if error.status_code >= 500:
                raise _UnservedError(complaint) from None
            raise AnnotatorError(f"{self._config.address} {complaint}") from None
        except openai.APIConnectionError as error:
            cause = self._one_line(error.__cause__ or error)
            raise _UnservedError(
                f"does not answer ({cause}); start again to go on from here"
            ) from None
        except (openai.OpenAIError, ValueError) as error:
            raise _UnservedError(_not_the_protocol(self._one_line(error))) from None
        try:
            return _read_completion(told)
        except (ValueError, RecursionError) as error:
            complaint = f"{self._one_line(error)}; got {told[:100]!r}"
            raise _UnservedError(_not_the_protocol(complaint)) from None

    def _one_line(self, error: BaseException) -> str:
        text = str(error).replace(self._config.base_url, self._config.address)
        return to_one_line(" ".join(text.split()) or type(error).__name__)[:300]

    def _to_body(
        self, request: Request[AnswerT], pictures: Sequence[bytes], *, with_schema: bool
    ) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": request.to_user_message()}]
        for jpeg in pictures:
            url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
            content.append({"type": "image_url", "image_url": {"url": url}})
        body: dict[str, Any] = {
            "model": self._sampler.model,
            "messages": [
                {"role": "system", "content": request.to_system_message()},
                {"role": "user", "content": content},
            ],
            "temperature": self._sampler.temperature,
            "seed": self._sampler.seed,
            "max_tokens": self._sampler.max_tokens,
        }
        if with_schema:
            schema = {"name": request.stage, "schema": request.to_json_schema(), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


def _read_completion(told: bytes) -> Answer:
    """Reads a server's answer, which may be anything.

    Raises:
        ValueError: It is no chat completion.
        NoAnswerError: The answer was cut off before it began.
    """
    completion: Any = json.loads(told)
    try:
        choice = completion["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        usage: Any = completion.get("usage") or dict[str, Any]()
        counts: list[Any] = [usage.get(n) or 0 for n in ("prompt_tokens", "completion_tokens")]
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no choice with a message") from None
    if not isinstance(text, str | None):
        raise ValueError(f"content must be a text, got {text!r:.80}")
    for count in counts:
        if not isinstance(count, int) or not 0 <= count <= _MAX_TOKENS:
            raise ValueError(f"usage must hold whole numbers, got {count!r:.80}")
    if refusal or finish_reason == "content_filter":
        text = None
    elif finish_reason == "length" and not (text or "").strip():
        # a model that thinks first, and came to no end; that is no refusal
        raise NoAnswerError(
            Failure(
                reason="truncated_answer",
                detail=f"cut off before it began, after {counts[1]} tokens: raise --max-tokens",
                prompt_tokens=counts[0],
                completion_tokens=counts[1],
            )
        )
    return Answer(
        # half characters can't be kept; the answer will not parse without them, as it should
        text=text.encode("utf-8", "replace").decode() if text is not None else None,
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
    )


def _not_the_protocol(reason: str) -> str:
    return f"does not speak the OpenAI protocol: {reason}"


def _without_secrets(url: str) -> str:
    """Takes out of what may be no address whatever may be a secret."""
    return re.sub(r"//.*@", "//", url, flags=re.DOTALL).partition("?")[0].partition("#")[0]
