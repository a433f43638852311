"""An annotator behind HTTP: any server with the OpenAI protocol, through the official client.

The client repeats what may pass by itself (429, 5xx, time-outs, dropped connections), each time
after a longer pause or the one that the server asks for. What remains after that ends the run;
everything answered is kept, and the same command goes on from there. What a server finds wrong
with one request is that request's fault alone, up to a point: ten in a row are the server's.
"""

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from itg_data.annotate.requests import AnnotatorError, Answer, RejectedError, Request, Sampler

logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

Structured = Literal["auto", "json-schema", "none"]

MISSING = "the annotator needs the OpenAI client: pip install 'itg-data[annotate]'"
_MAX_REJECTIONS = 10


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
        # untyped: a body made piece by piece fits none of the client's overloads
        create: Any = self._client.chat.completions.create
        try:
            completion = await create(**self._to_body(request, pictures, with_schema=with_schema))
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
            raise AnnotatorError(
                f"{self._config.base_url} does not speak the OpenAI protocol: {_one_line(error)}"
            ) from None
        self._num_rejections = 0
        return self._to_answer(completion)

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

    def _to_answer(self, completion: Any) -> Answer:
        # the client hands on whatever JSON the server sends, or even text
        choices = getattr(completion, "choices", None)
        if not choices or choices[0].message is None:
            raise AnnotatorError(
                f"{self._config.base_url} does not speak the OpenAI protocol: got "
                f"{str(completion)[:100]!r}"
            )
        message, usage = choices[0].message, completion.usage
        text = message.content
        if message.refusal or choices[0].finish_reason == "content_filter":
            text = None
        return Answer(
            # half characters can't be kept; the answer will not parse without them, as it should
            text=text.encode("utf-8", "replace").decode() if text is not None else None,
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
        )

    def _count_rejection(self, error: Exception, count: int) -> None:
        self._num_rejections += count
        if self._num_rejections > _MAX_REJECTIONS:
            raise AnnotatorError(
                f"{self._config.base_url} rejects every request: {_one_line(error)}"
            ) from None


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
