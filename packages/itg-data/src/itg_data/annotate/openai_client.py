"""An annotator behind HTTP: any server with the OpenAI protocol, through the official client.

The client repeats what may pass by itself (429, 5xx, time-outs, dropped connections), each time
after a longer pause or the one that the server asks for. What remains after that ends the run;
everything answered is kept, and the same command goes on from there. What a server finds wrong
with one request is that request's fault alone, up to a point: ten in a row are the server's.
"""

import base64
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from itg_data.annotate.requests import AnnotatorError, Answer, RejectedError, Request, Sampler

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

Structured = Literal["auto", "json-schema", "none"]

MISSING = "the annotator needs the OpenAI client: pip install 'itg-data[annotate]'"
_MAX_REJECTIONS = 10
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
    """How long one answer may take."""

    structured: Structured = "auto"
    """Whether the server is told the JSON schema of the answer; auto stops if it objects."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must start with http:// or https://, got {self.base_url!r}")
        try:
            parts = urlsplit(self.base_url)
            named = bool(parts.hostname) and parts.port != 0
        except ValueError:
            named = False
        if not named:
            raise ValueError(f"base_url must name a host, got {self.base_url!r}")
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            # neither shown here nor, by whoever would send it, in a complaint about a header
            raise ValueError("api_key must be printable ASCII; a line break, say, is none of a key")
        if self.max_retries < 0:
            raise ValueError(f"max_retries must be >= 0, got {self.max_retries}")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s must be > 0, got {self.timeout_s}")


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
        )
        self._config = config
        self._sampler = sampler
        self._sends_schema = config.structured != "none"
        self._num_rejections = 0

    async def ask(self, request: Request[AnswerT], pictures: Sequence[bytes]) -> Answer:
        """Gets one answer; see `Annotator.ask`."""
        if self._sends_schema:
            try:
                return await self._send(request, pictures, with_schema=True)
            except RejectedError as error:
                if self._config.structured != "auto":
                    raise
                answer = await self._send(request, pictures, with_schema=False)
                logger.warning(
                    "the server takes no JSON schema (%s); answers are parsed strictly", error
                )
                self._sends_schema = False
                return answer
        return await self._send(request, pictures, with_schema=False)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _send(
        self, request: Request[AnswerT], pictures: Sequence[bytes], *, with_schema: bool
    ) -> Answer:
        openai = self._openai
        body = self._to_body(request, pictures, with_schema=with_schema)
        try:
            # past the client's typed methods: they look at every part of a body and of an answer,
            # and take as long for it as for all the rest
            told = await self._client.post("/chat/completions", cast_to=bytes, body=body)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422):
                may_be_the_schema = with_schema and self._config.structured == "auto"
                self._count_rejection(error, 0 if may_be_the_schema else 1)
                raise RejectedError(_one_line(error)) from None
            raise AnnotatorError(
                f"{self._config.base_url} answers {error.status_code}: {_one_line(error)}"
            ) from None
        except openai.APIConnectionError as error:
            cause = _one_line(error.__cause__ or error)
            raise AnnotatorError(
                f"{self._config.base_url} does not answer ({cause}); start again to go on from here"
            ) from None
        except (openai.OpenAIError, ValueError) as error:
            raise self._not_the_protocol(_one_line(error)) from None
        self._num_rejections = 0
        try:
            return _read_completion(told)
        except (ValueError, RecursionError) as error:
            raise self._not_the_protocol(f"{_one_line(error)}; got {told[:100]!r}") from None

    def _not_the_protocol(self, reason: str) -> AnnotatorError:
        return AnnotatorError(
            f"{self._config.base_url} does not speak the OpenAI protocol: {reason}"
        )

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

    def _count_rejection(self, error: Exception, count: int) -> None:
        self._num_rejections += count
        if self._num_rejections > _MAX_REJECTIONS:
            raise AnnotatorError(
                f"{self._config.base_url} rejects every request: {_one_line(error)}"
            ) from None


def _read_completion(told: bytes) -> Answer:
    """Reads a server's answer, which may be anything.

    Raises:
        ValueError: It is no chat completion.
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
    return Answer(
        # half characters can't be kept; the answer will not parse without them, as it should
        text=text.encode("utf-8", "replace").decode() if text is not None else None,
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
    )


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
