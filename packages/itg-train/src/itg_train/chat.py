"""The chat task of the stages before grounding: conversations about an image, a video or nothing.

Records have LLaVA's form, a JSON list of objects with `id`, `image` or `video` (a path, or neither)
and `conversations`, turns that alternate between `human` and `gpt`. A turn is written out in one of
two templates:

- `plain`, for a projector that learns alone: the image, then what the assistant says, then a
  newline; what the human says is left out.
- `chatml`, as Qwen2 was trained: `<|im_start|>role`, a newline, the text, `<|im_end|>`, a newline,
  after a system prompt.

What the assistant says is learnt, with the mark that ends it; all else is only read. The image or
video stands where `<image>` does, or first where the text does not say.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from itg_data.errors import RecordError
from itg_model.model import VIDEO_TOKEN_ID
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Template = Literal["plain", "chatml"]

IGNORED = -100
"""Label of a token that is read and not learnt."""

SYSTEM_PROMPT = "You are a helpful assistant."

CHATML_MARKS = ("<|im_start|>", "<|im_end|>")

_IMAGE = "<image>"
_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRecord:
    """One conversation."""

    id: str
    video: str
    """Path of the image or video relative to the set's root; empty where there is none."""
    turns: tuple[tuple[str, str], ...]
    """(role, text), beginning with a human's."""
    split: str | None = None
    question_type: str | None = None

    @property
    def question(self) -> str:
        """All that is said, which a tokenizer may learn from."""
        return "\n".join(text for _, text in self.turns)


def read_conversations(path: Path) -> tuple[list[ChatRecord], list[RecordError]]:
    """Reads conversations in LLaVA's form; a record that breaks it is left out with a complaint.

    Raises:
        RecordError: The file cannot be read or is no JSON list.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except RecursionError:
        raise RecordError(f"{path}: is nested too deeply") from None
    if not isinstance(found, list):
        raise RecordError(f"{path}: must be a list of conversations")
    records: list[ChatRecord] = []
    bad: list[RecordError] = []
    for place, each in enumerate(cast("list[Any]", found)):
        try:
            records.append(_to_record(each, place))
        except RecordError as error:
            bad.append(RecordError(f"{path}: record {place}: {error}"))
    return records, bad


def _to_record(found: Any, place: int) -> ChatRecord:
    if not isinstance(found, dict):
        raise RecordError(f"must be an object, got {type(found).__name__}")
    seen = found.get("image") or found.get("video") or ""
    if isinstance(seen, list):
        if len(seen) != 1:
            raise RecordError(f"has {len(seen)} images; one at most can be shown")
        seen = seen[0]
    parts = seen.split("/") if isinstance(seen, str) else [".."]
    if ".." in parts or seen.startswith("/") or "\\" in seen:
        raise RecordError(f"image or video must be a path inside the set's root, got {seen!r:.80}")
    turns = tuple(_to_turns(found.get("conversations")))
    marks = sum(text.count(_IMAGE) for _, text in turns)
    if marks > 1 or (marks and not seen):
        raise RecordError(f"says {_IMAGE} {marks} times, with {1 if seen else 0} to show")
    return ChatRecord(id=str(found.get("id", place)), video=seen, turns=turns)


def _to_turns(found: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(found, list) or len(found) < 2 or len(found) % 2:
        raise RecordError("conversations must be a list of turns, human and gpt by turns")
    for place, turn in enumerate(cast("list[Any]", found)):
        wanted = "human" if place % 2 == 0 else "gpt"
        if not isinstance(turn, dict) or turn.get("from") != wanted:
            raise RecordError(f"turn {place} must be from {wanted!r}")
        text = turn.get("value")
        if not isinstance(text, str) or (wanted == "gpt" and not text.strip()):
            raise RecordError(f"turn {place} must have a text as its value")
        yield wanted, text


class ChatTask:
    """Makes ids and labels of conversations.

    Args:
        tokenizer: With `<|im_start|>` and `<|im_end|>` among its tokens for `chatml`.
        template: How turns are written out.
        max_length: Tokens of a conversation at most, its image's not counted. The rest is cut; if
            the image would be with it, what is said long before the image is cut instead.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.template: Template = template
        self.max_length = max_length

    def encode(self, record: ChatRecord) -> Tensor:
        """[L] ids, with `VIDEO_TOKEN_ID` where the image or video goes."""
        return torch.tensor([i for i, _ in self._tokens(record)], dtype=torch.int64)

    def label(self, record: ChatRecord, time_s: npt.NDArray[np.float64]) -> Tensor:
        """[L] the ids that are learnt, and `IGNORED`."""
        labels = [i if learnt else IGNORED for i, learnt in self._tokens(record)]
        return torch.tensor(labels, dtype=torch.int64)

    def _tokens(self, record: ChatRecord) -> list[tuple[int, bool]]:
        """Ids, and whether each is learnt."""
        pieces = self._plain(record) if self.template == "plain" else self._chatml(record)
        tokens: list[tuple[int, bool]] = []
        for text, learnt in pieces:
            before, mark, after = text.partition(_IMAGE)
            tokens += self._ids(before, learnt)
            if mark:
                tokens += [(VIDEO_TOKEN_ID, False), *self._ids(after, learnt)]
        return self._cut(tokens)

    def _cut(self, tokens: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
        start = 0
        if (VIDEO_TOKEN_ID, False) in tokens[self.max_length :]:
            # answers that nothing is seen for should not be learnt
            mark = tokens.index((VIDEO_TOKEN_ID, False))
            start = min(mark, len(tokens) - self.max_length)
        return tokens[start : start + self.max_length]

    def _ids(self, text: str, learnt: bool) -> list[tuple[int, bool]]:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [(i, learnt) for i in cast("list[int]", ids)]

    def _plain(self, record: ChatRecord) -> list[tuple[str, bool]]:
        said = [text for role, text in record.turns if role == "gpt"]
        shown = [(_IMAGE, False)] if record.video else []
        return [*shown, *((text.replace(_IMAGE, "") + "\n", True) for text in said)]

    def _chatml(self, record: ChatRecord) -> list[tuple[str, bool]]:
        pieces = [(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n", False)]
        marked = any(_IMAGE in text for _, text in record.turns)
        for place, (role, text) in enumerate(record.turns):
            first = record.video and not marked and place == 0
            shown = f"{_IMAGE}\n{text}" if first else text
            learnt = role == "gpt"
            pieces += [
                (f"<|im_start|>{_ROLES[role]}\n", False),
                (f"{shown}<|im_end|>", learnt),
                ("\n", False),
            ]
        return pieces


def has_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer knows ChatML's marks as tokens of their own."""
    return all(len(tokenizer.encode(mark, add_special_tokens=False)) == 1 for mark in CHATML_MARKS)
