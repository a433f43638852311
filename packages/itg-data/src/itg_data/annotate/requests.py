"""A request to an annotator and its answer: versioned prompts, data kept as data, strict reading.

The system message is a Markdown file of this package, whole. The user message is one JSON object
between `<data>` and `</data>` with every `<` and `>` inside it escaped, so that no question, no
caption and no answer of a model's can close the bracket and speak for itself. An answer must be one
JSON object with exactly the fields of its record; what else a model says is refused, once with the
chance to mend it.

A request is known by the hash of all that decides its answer. Pictures enter it as the hash of the
video and the frame's place, size and quality, so that an answer can be looked up without decoding.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

from itg_data.annotate.records import DropReason, require_whole_characters
from itg_data.errors import ItgError
from itg_data.jsonl import parse_json
from itg_data.records import parse_fields

Stage = Literal["cues", "caption", "retrieve", "classify", "check"]
STAGES: tuple[Stage, ...] = get_args(Stage)

AnswerT = TypeVar("AnswerT")

_FENCE = "```"
_FAULT = "fault_of_your_last_answer"
_MEND = (
    f"Your last answer could not be used: `{_FAULT}` says why. Answer again, with one JSON object "
    "and nothing else."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """How an annotator draws its answers."""

    model: str
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError("model must not be blank")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be in 0..2, got {self.temperature}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {self.max_tokens}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer of 64 bits, got {self.seed}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request(Generic[AnswerT]):
    """One question to an annotator."""

    stage: Stage
    inputs: dict[str, Any]
    """What the prompt speaks of: texts and numbers, as JSON."""
    pictures: tuple[str, ...] = ()
    """What identifies each picture, in order."""
    answer_type: type[AnswerT]
    """Record that the answer must fill."""
    fault: str | None = None
    """What was wrong with the answer before; makes this the second and last try."""

    def mended(self, fault: str) -> "Request[AnswerT]":
        """Asks again, saying what was wrong."""
        return replace(self, fault=fault)

    def to_system_message(self) -> str:
        """Gives the prompt."""
        return load_prompt(self.stage)

    def to_user_message(self) -> str:
        """Gives the inputs, bracketed so that they cannot pass for instructions."""
        # the complaint quotes the model, which may have been talked round: it is data as well
        told = self.inputs if self.fault is None else {**self.inputs, _FAULT: self.fault}
        text = json.dumps(told, ensure_ascii=False)
        text = text.replace("<", "\\u003c").replace(">", "\\u003e")
        message = f"<data>\n{text}\n</data>"
        return message if self.fault is None else f"{message}\n\n{_MEND}"

    def to_json_schema(self) -> dict[str, Any]:
        """Describes the answer for servers that can hold a model to a schema."""
        return _object_schema(self.answer_type)

    def key(self, sampler: Sampler) -> str:
        """Hashes everything that decides the answer."""
        content = {
            "system": self.to_system_message(),
            "user": self.to_user_message(),
            "pictures": self.pictures,
            "schema": self.to_json_schema(),
            **dataclasses.asdict(sampler),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def parse(self, text: str) -> AnswerT:
        """Reads an answer.

        Raises:
            RecordError: It is not exactly one JSON object with the fields asked for.
        """
        said = parse_json(_without_fence(text))
        require_whole_characters("the answer", json.dumps(said, ensure_ascii=False))
        return parse_fields(self.answer_type, said)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an annotator said, as it said it."""

    text: str | None
    """None where it refused to answer."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """That a request got no answer; kept like one, so that a replay meets it too."""

    reason: DropReason
    detail: str
    """One line."""
    prompt_tokens: int = 0
    """Paid for all the same."""
    completion_tokens: int = 0


class AnnotatorError(ItgError):
    """No answers can be had: the server is gone, the key is wrong, a cassette lacks the request."""


class MissingExtraError(AnnotatorError, ModuleNotFoundError):
    """A package is missing that an extra of itg-data brings."""


class NoAnswerError(Exception):
    """There is no answer to one request; others may fare better."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class RejectedError(NoAnswerError):
    """The server finds fault with one request."""

    def __init__(self, detail: str) -> None:
        super().__init__(Failure(reason="rejected_by_server", detail=detail))


@lru_cache
def load_prompt(stage: Stage) -> str:
    """Reads the prompt of a stage."""
    return (files("itg_data.annotate") / "prompts" / f"{stage}.md").read_text("utf-8")


@lru_cache
def prompt_sha256(stage: Stage) -> str:
    """Hashes the prompt of a stage: its version."""
    return hashlib.sha256(load_prompt(stage).encode()).hexdigest()


def _without_fence(text: str) -> str:
    """Takes off the one ornament that models can't be talked out of."""
    text = text.strip()
    if text.startswith(_FENCE) and text.endswith(_FENCE) and text.count(_FENCE) == 2:
        text = text.strip("`").removeprefix("json").strip()
    return text


@lru_cache
def _object_schema(record_type: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(record_type)
    names = [field.name for field in dataclasses.fields(record_type)]
    return {
        "type": "object",
        "properties": {name: _schema(hints[name]) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _schema(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _schema(get_args(hint)[0])}
    return {"type": {str: "string", bool: "boolean", int: "integer"}[hint]}
