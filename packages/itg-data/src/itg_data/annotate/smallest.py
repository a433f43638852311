"""The smallest request of each stage: whoever serves any of a stage serves that one.

When a request fails, its own content may be to blame, or the server. Which of them it is decides
between the loss of one QA pair and the end of a run, so it is tried out, with a request in which
there is nothing to find fault with. Its answer is thrown away.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from itg_data.annotate.caption import CaptionAnswer
from itg_data.annotate.check import CheckAnswer
from itg_data.annotate.classify import ClassifyAnswer
from itg_data.annotate.cues import CuesAnswer
from itg_data.annotate.frames import encode_jpeg
from itg_data.annotate.requests import Request, Stage
from itg_data.annotate.retrieve import RetrieveAnswer

_PAIR = {"question": "What colour is the square?", "answer": "Grey."}
_INPUTS: dict[Stage, tuple[dict[str, Any], type[Any]]] = {
    "cues": (_PAIR, CuesAnswer),
    "caption": ({"cues": ["grey square"]}, CaptionAnswer),
    "retrieve": ({**_PAIR, "captions": ["A grey square."]}, RetrieveAnswer),
    "classify": (_PAIR, ClassifyAnswer),
    "check": (_PAIR, CheckAnswer),
}
_SIDE_PX = 64
"""Models that cut pictures into patches refuse those smaller than one."""


@lru_cache
def smallest_request(stage: Stage) -> tuple[Request[Any], tuple[bytes, ...]]:
    """Gives the smallest request of a stage, and its pictures."""
    inputs, answer_type = _INPUTS[stage]
    pictures: tuple[bytes, ...] = ()
    if stage in ("caption", "check"):
        pictures = (encode_jpeg(np.full((_SIDE_PX, _SIDE_PX, 3), 128, dtype=np.uint8)),)
    names = tuple(f"grey {place}" for place in range(len(pictures)))
    return (
        Request(stage=stage, inputs=inputs, pictures=names, answer_type=answer_type),
        pictures,
    )
