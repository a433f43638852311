"""`itg-select --ui`: a page in the browser to drop a video on and ask.

Gradio serves it and takes the video; what is shown is the page of `itg_model.report`, in a frame
that may run its script and nothing else. A video is encoded once, however many questions follow.
Needs gradio, which nothing else here does: the extra `itg-model[ui]`.
"""

import dataclasses
import html
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro
from itg_data.errors import ItgError
from itg_data.helptext import join_help
from itg_data.records import FrameSelection, to_json
from itg_data.timeline import Thumbnails

from itg_model.locate import TINY, TINY_WARNING

if TYPE_CHECKING:
    from gradio import Blocks

    from itg_model.grounder import EncodedVideo, FrameGrounder

NUMBER_POLICIES = ("top-k", "min-gap", "bin-max", "aks", "bolt", "wfs-sb", "dig", "uniform")
"""Policies that need nothing but scores, and draw nothing at random."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """Serves a page to drop a video on and ask; Ctrl-C ends it.

    The page is for this machine unless --host says otherwise: whoever reaches it may use it.
    """

    model: str = TINY
    """Checkpoint directory, owner/name on the Hugging Face hub, or itg-tiny, which comes along and
    knows nothing but the drawn shapes of scripted videos."""

    vision_checkpoint: Path | None = None
    """Directory of SigLIP weights, for a checkpoint that lacks its vision tower."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    dtype: str = "auto"
    """auto, float32, float16 or bfloat16."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int | None = None
    """Port to listen on; by default the first that is free from 7860 on."""


class Asker:
    """Answers the page's questions; holds the last video encoded.

    Args:
        grounder: Who scores.
    """

    def __init__(self, grounder: "FrameGrounder") -> None:
        self.grounder = grounder
        self._last: tuple[str, EncodedVideo, Thumbnails] | None = None

    def ask(
        self,
        video: str,
        question: str,
        top_k: int,
        policy: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[FrameSelection, Thumbnails]:
        """Chooses frames as `FrameGrounder.select` does; raises as it does."""
        if self._last is None or self._last[0] != video:
            self._last = None
            thumbnails = Thumbnails()
            encoded = self.grounder.encode(video, None, progress, thumbnails.add)
            self._last = (video, encoded, thumbnails)
        _, encoded, thumbnails = self._last
        selection = self.grounder.select(encoded, question, top_k, policy=policy)
        # where the server keeps an upload is nobody's business
        return dataclasses.replace(selection, video=Path(video).name), thumbnails


def build(grounder: "FrameGrounder") -> "Blocks":
    """Makes the page.

    Its one endpoint is `/ask`: video, question, number of frames and policy to HTML and JSON.
    """
    import gradio

    from itg_model.report import render_report

    asker = Asker(grounder)

    def ask(
        video: str | None,
        question: str,
        top_k: float,
        policy: str,
        progress: gradio.Progress = gradio.Progress(),  # noqa: B008 (gradio looks for it there)
    ) -> tuple[str, dict[str, Any]]:
        if video is None:
            raise gradio.Error("drop a video first")

        def show(num_done: int, num_frames: int) -> None:
            progress((num_done, num_frames), desc="looking at frames", unit="frames")

        try:
            selection, thumbnails = asker.ask(video, question, int(top_k), policy, show)
        except (ItgError, ValueError, OSError) as error:
            raise gradio.Error(str(error).replace(video, Path(video).name)) from None
        page = html.escape(render_report(selection, thumbnails))
        frame = 'sandbox="allow-scripts" style="width:100%;height:85vh;border:0"'
        return f'<iframe title="the frames" {frame} srcdoc="{page}"></iframe>', to_json(selection)

    with gradio.Blocks(title="itg-select", analytics_enabled=False, fill_width=True) as page:
        gradio.Markdown("# Which frames answer the question?")
        if grounder.name == TINY:
            gradio.Markdown(f"*{TINY_WARNING}*")
        with gradio.Row():
            video = gradio.Video(label="Video", sources=["upload"], height=220)
            with gradio.Column():
                question = gradio.Textbox(label="Question", submit_btn=True)
                with gradio.Row():
                    top_k = gradio.Slider(1, 128, value=8, step=1, label="Frames")
                    policy = gradio.Dropdown(NUMBER_POLICIES, value="top-k", label="Policy")
        answer = gradio.HTML()
        with gradio.Accordion("As JSON", open=False):
            record = gradio.JSON(show_label=False)
        question.submit(ask, [video, question, top_k, policy], [answer, record], api_name="ask")
    return page


def serve(argv: Sequence[str]) -> None:
    """Serves the page until Ctrl-C; see `Page` for the arguments.

    Raises:
        ValueError: gradio is not installed, or an argument is senseless.
        CheckpointError: The checkpoint cannot be found, read or used.
        OSError: The port is taken.
    """
    request = tyro.cli(join_help(Page), prog="itg-select --ui", args=argv)
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("--ui needs gradio: pip install 'itg-model[ui]'")
    # gradio asks its makers for news when it is imported, unless told not to
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from gradio import themes

    from itg_model.grounder import FrameGrounder

    grounder = FrameGrounder.from_pretrained(
        request.model,
        request.device,
        request.dtype,
        vision_checkpoint=request.vision_checkpoint,
    )
    page = build(grounder)
    _, url, _ = page.launch(
        server_name=request.host,
        server_port=request.port,
        # fonts of the machine: the page is to need no network
        theme=themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
    )
    sys.stderr.write(f"itg-select: open {url} in a browser; Ctrl-C ends it\n")
    page.block_thread()
