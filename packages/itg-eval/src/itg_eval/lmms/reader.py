# pyright: standard
# lmms_eval is not typed
"""`itg_reader`: a host model that sees scripted videos, called by lmms-eval like any other.

It finds the object that the question names in each frame it is shown, and answers with the way from
the first place to the last. What it sees fewer than two times it cannot tell, and says the first
option.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from itg_data.errors import ItgError
from itg_data.video import open_video
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from PIL import Image

from itg_eval.scripted.reader import find_object, load_reader

_QUESTION = re.compile(r"What does the (\w+) (\w+) do\?")
_OPTION = re.compile(r"^([A-E])\. It (stays still|moves (?:left|right|up|down))$", re.MULTILINE)
_STILL = 0.06
"""A way shorter than this part of the picture is none."""


class Reader(lmms):
    """The host model for chat requests.

    Args:
        pretrained: Folder that `itg-eval scripted` wrote.
        batch_size: Questions at once; makes no difference but to lmms-eval's order of calls.
        device: Only `cpu`; lmms-eval hands it on.
    """

    is_simple = False

    def __init__(self, pretrained: str, batch_size: int = 1, device: str = "cpu") -> None:
        super().__init__()
        self._reader = load_reader(pretrained)
        self._batch_size = int(batch_size)
        self.device = torch.device(device)

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        """Answers each request with the letter of an option."""
        answers: list[GenerationResult] = []
        for batch in _batches(requests, self._batch_size):
            # as lmms-eval's own batched models do: one callable for the batch
            to_input: Callable[[Any], Any] = batch[0].args[2 if self.is_simple else 1]
            for request in batch:
                doc_id, task, split = list(request.args)[-3:]
                given = to_input(self.task_dict[task][split][doc_id])
                images = list(_images(given if self.is_simple else _contents(given)))
                text = request.args[0] if self.is_simple else _text(_contents(given))
                answers.append(GenerationResult(self._answer(images, text)))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Is not there: the reader only says what it sees."""
        raise NotImplementedError("itg_reader answers in text only")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Is not there: a question is answered once."""
        raise NotImplementedError("itg_reader answers in one round only")

    def _answer(self, images: list[Image.Image], prompt: str) -> str:
        question = _QUESTION.search(prompt)
        options = {action: letter for letter, action in _OPTION.findall(prompt)}
        if question is None or not options:
            raise ItgError(f"itg_reader can only be asked what an object does, got {prompt!r:.80}")
        seen = find_object(self._reader, images, *question.groups())
        if len(seen) < 2:
            return next(iter(options.values()))
        return options[_name_way(seen[0], seen[-1])]


class SimpleReader(Reader):
    """The same for simple requests."""

    is_simple = True


def _name_way(start: tuple[float, float], end: tuple[float, float]) -> str:
    right, down = end[0] - start[0], end[1] - start[1]
    if max(abs(right), abs(down)) < _STILL:
        return "stays still"
    if abs(right) > abs(down):
        return "moves right" if right > 0 else "moves left"
    return "moves down" if down > 0 else "moves up"


def _batches(requests: list[Instance], size: int) -> Iterable[list[Instance]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))


def _contents(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [content for message in messages for content in message["content"]]


def _text(contents: Sequence[dict[str, Any]]) -> str:
    return "\n".join(content["text"] for content in contents if content["type"] == "text")


def _images(visuals: Iterable[Any]) -> Iterable[Image.Image]:
    """The pictures in visuals or in contents of a message; of a file, every frame."""
    for visual in visuals:
        shown = visual.get("url") if isinstance(visual, dict) else visual
        if isinstance(shown, Image.Image):
            yield shown
        elif isinstance(shown, list):
            yield from shown
        elif isinstance(shown, str):
            with open_video(shown) as video:
                for frame in video.read(range(video.num_frames)).frames:
                    yield Image.fromarray(frame)
