"""Requests and answers of OpenAI's chat-completions protocol, as far as the pipeline needs it."""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, cast

from itg_data.scripted_vlm.answers import STAGES, Inputs, Stage
from itg_data.scripted_vlm.sight import ScriptedSet

MODEL = "scripted-vlm"
TOKENS_PER_IMAGE = 85
_CHARACTERS_PER_TOKEN = 4


class BadRequestError(Exception):
    """A request that a server of this protocol would refuse; `code` goes into the answer."""

    def __init__(self, message: str, code: str = "invalid_request", status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """A request to `/v1/chat/completions`, read."""

    stage: Stage
    inputs: dict[str, Any]
    images: tuple[bytes, ...]
    has_schema: bool
    num_characters: int
    digest: bytes
    """Of all that was sent: the same request has the same."""

    def look(self, scripted: ScriptedSet) -> Inputs:
        """Recognises the pictures.

        Raises:
            BadRequestError: A field of the inputs is of the wrong type, or a picture is none.
        """
        try:
            sightings = tuple(map(scripted.recognise, self.images))
        except ValueError as error:
            raise BadRequestError(f"image_url {error}") from None
        return Inputs(
            question=self._text("question"),
            answer=self._text("answer"),
            cues=self._texts("cues"),
            captions=self._texts("captions"),
            sightings=sightings,
        )

    def _text(self, name: str) -> str:
        value = self.inputs.get(name) or ""
        if not isinstance(value, str):
            raise BadRequestError(f"{name} must be a string, got {value!r:.80}")
        return value

    def _texts(self, name: str) -> tuple[str, ...]:
        value: object = self.inputs.get(name) or []
        if not isinstance(value, list):
            raise BadRequestError(f"{name} must be a list of strings, got {value!r:.80}")
        return tuple(map(str, cast("list[Any]", value)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """The model's words."""

    text: str
    fault: Literal["refusals", "malformed"] | None = None
    """What is wrong with them, if that is more than an error."""
    finish_reason: Literal["stop", "length"] = "stop"


def read_request(body: bytes, *, takes_schema: bool) -> ChatRequest:
    """Reads a request.

    Args:
        body: JSON.
        takes_schema: Whether this server knows `response_format`'s JSON schemas.

    Raises:
        BadRequestError: It is none, or asks for what is not offered here.
    """
    try:
        data: Any = json.loads(body)
        messages: list[Any] = list(data["messages"])
        model: Any = data["model"]
        response_format: Any = data.get("response_format") or {}
        schema_name: str | None = response_format.get("json_schema", {}).get("name")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadRequestError(f"the body is no chat request: {error!r:.200}") from None
    if model != MODEL:
        raise BadRequestError(f"there is no model {model!r:.80}", "model_not_found", 404)
    if data.get("stream"):
        raise BadRequestError("stream is not supported")
    if response_format and not takes_schema:
        raise BadRequestError("response_format is not supported", "unsupported_parameter")
    system, text, urls = _read_messages(messages)
    return ChatRequest(
        stage=_stage_of(schema_name or system.lstrip("# ").partition(" ")[0]),
        inputs=_object_in(text),
        images=tuple(map(_image_in, urls)),
        has_schema=bool(schema_name),
        num_characters=len(system) + len(text),
        digest=hashlib.sha256(body).digest(),
    )


def _read_messages(messages: list[Any]) -> tuple[str, str, list[str]]:
    """Gives the system's text, and the first user's with the addresses of its pictures.

    Later turns only complain about the first answer.
    """
    try:
        by_role = {message["role"]: _parts(message["content"]) for message in reversed(messages)}
        texts = {
            role: "\n".join(part["text"] for part in parts if part["type"] == "text")
            for role, parts in by_role.items()
        }
        pictures = [p for p in by_role.get("user", ()) if p["type"] == "image_url"]
        return (
            texts.get("system", ""),
            texts.get("user", ""),
            [str(part["image_url"]["url"]) for part in pictures],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequestError(f"a message is not readable: {error!r:.200}") from None


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _stage_of(name: str) -> Stage:
    for stage in STAGES:
        if name == stage:
            return stage
    raise BadRequestError(f"the request must name one of the stages {STAGES}, got {name!r:.80}")


def _object_in(text: str) -> dict[str, Any]:
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except ValueError:
            start = text.find("{", start + 1)
            continue
        return cast("dict[str, Any]", found)
    raise BadRequestError("the user's message must hold the inputs as a JSON object")


def _image_in(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise BadRequestError(f"image_url must be data:image/...;base64,..., got {url[:40]!r}")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise BadRequestError(f"image_url is not base64: {error}") from None


def count_tokens(request: ChatRequest, answer: str) -> dict[str, int]:
    """Counts what a request costs: a token for four characters, and a fixed number an image."""
    prompt = -(-request.num_characters // _CHARACTERS_PER_TOKEN)
    prompt += TOKENS_PER_IMAGE * len(request.images)
    completion = -(-len(answer) // _CHARACTERS_PER_TOKEN)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def completion(request: ChatRequest, said: Said, created: int) -> dict[str, Any]:
    """Wraps an answer as a `chat.completion` object."""
    text = said.text
    # servers that know schemas tell a refusal apart from an answer
    says_so = said.fault == "refusals" and request.has_schema
    return {
        "id": f"chatcmpl-{request.digest.hex()[:24]}",
        "object": "chat.completion",
        "created": created,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": None if says_so else text,
                    "refusal": text if says_so else None,
                },
                "logprobs": None,
                "finish_reason": said.finish_reason,
            }
        ],
        "usage": count_tokens(request, text),
    }


def error_body(message: str, kind: str, code: str) -> dict[str, Any]:
    """Wraps a complaint as the protocol does."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
