"""In which form a host model is given frames, by its id in lmms-eval 0.7.3.

    images      one picture after another, the time of each as text before it
    video_list  a list of pictures that the host takes for one video; the Qwen-VL family with times
    pil_video   the same for llava_onevision, which wants to be told through request metadata
    clip        a lossless video file, for hosts that open a path and sample it themselves

What the host sees differs: pictures cost more tokens than a video's frames where the host merges
them in time, and only `images` and Qwen-VL's `video_list` tell it when a frame was shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from itg_data.errors import ItgError

Form = Literal["images", "video_list", "pil_video", "clip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HostForms:
    """How one host model is given frames; None where lmms-eval has no such class of it."""

    chat: Form | None = None
    simple: Form | None = None
    num_frames_arg: str | None = None
    """The host's own argument for how many frames it takes from a file; must be the selection's."""


HOSTS: dict[str, HostForms] = {
    "itg_reader": HostForms(chat="images", simple="images"),
    "qwen2_5_vl": HostForms(chat="video_list", simple="images"),
    "qwen3_vl": HostForms(chat="video_list", simple="images"),
    "qwen3_5": HostForms(chat="video_list", simple="images"),
    "internvl_hf": HostForms(chat="video_list"),
    "llava_hf": HostForms(chat="images", simple="images"),
    "huggingface": HostForms(chat="images"),
    "openai": HostForms(chat="images", simple="images"),
    "async_openai": HostForms(chat="images"),
    "vllm": HostForms(chat="images", simple="images"),
    "llava_onevision": HostForms(simple="pil_video", num_frames_arg="max_frames_num"),
    "internvl2": HostForms(simple="clip", num_frames_arg="num_frame"),
    "internvl3": HostForms(simple="clip", num_frames_arg="num_frame"),
    "internvl3_5": HostForms(simple="clip", num_frames_arg="num_frame"),
    "llava_vid": HostForms(simple="clip", num_frames_arg="max_frames_num"),
}


def choose_form(host: str, is_simple: bool, asked: str | None) -> Form:
    """Gives the form for a host model: the one asked for, or the table's.

    Raises:
        ItgError: The form is unknown or not for such a host, or none was asked for and the table
            has none.
    """
    if asked is not None:
        if asked not in get_args(Form):
            raise ItgError(f"frames_as must be one of {', '.join(get_args(Form))}, got {asked!r}")
        if asked == ("video_list" if is_simple else "pil_video"):
            kind = "chat" if is_simple else "simple"
            raise ItgError(f"frames_as={asked} is for {kind} hosts, {host} is none")
        return cast(Form, asked)
    forms = HOSTS.get(host, HostForms())
    form = forms.simple if is_simple else forms.chat
    if form is None:
        raise ItgError(
            f"no form is known in which {host} ({'simple' if is_simple else 'chat'}) takes frames: "
            "add frames_as=clip if it opens a path, frames_as=images if it takes several pictures"
        )
    return form


def frame_count(host: str, given: Mapping[str, Any], top_k: int) -> dict[str, int]:
    """The argument that tells a host which samples by itself to take all frames selected.

    Raises:
        ItgError: It is given, and another number.
    """
    name = HOSTS.get(host, HostForms()).num_frames_arg
    if name is None:
        return {}
    # a command line's numbers are text
    if str(given.get(name, top_k)) != str(top_k):
        raise ItgError(f"{name} must be the number of selected frames, {top_k}, got {given[name]}")
    return {name: top_k}
