"""`itg-select`: the frames of a video that answer a question, as JSON and as pictures.

`itg_model.batch` is the same for many questions.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from itg_data.errors import ItgError, in_one_line, to_one_line
from itg_data.helptext import join_help, says_version
from itg_data.records import FrameSelection, to_json
from itg_data.sampling import SamplingConfig, SamplingRule
from itg_data.video import open_video

from itg_model.locate import TINY, TINY_WARNING
from itg_model.policies import parse_policy_params

if TYPE_CHECKING:
    from itg_data.timeline import Thumbnails

    from itg_model.grounder import FrameGrounder

SAMPLING = SamplingConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Picks the frames of a video that answer a question.

    JSON goes to stdout, progress and errors to stderr. A folder as VIDEO, or --questions, gives a
    line of JSON for each question; with --json FILE, an interrupted run goes on where it was. Exit
    codes: 0 done, 1 some of many failed, 2 bad input, 130 interrupted. `itg-select --ui` serves a
    page instead, to drop a video on and ask; `itg-select --ui --help` lists its options.
    `itg-select --version` says which release this is.
    """

    video: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO")] = None
    """Video file, or a folder of them. May be left out where --questions names videos."""

    question: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="QUESTION")] = None
    """What the frames should answer; with a folder, asked of every video."""

    questions: Path | None = None
    """File of questions: .jsonl or .csv with question and perhaps video, else one a line. Those
    without a video are asked of VIDEO; videos are looked for in the folder VIDEO, or beside the
    file."""

    model: str = TINY
    """Checkpoint directory, owner/name on the Hugging Face hub, or itg-tiny, which comes along and
    knows nothing but the drawn shapes of scripted videos."""

    vision_checkpoint: Path | None = None
    """Directory of SigLIP weights, for a checkpoint that lacks its vision tower."""

    top_k: int = 32
    """Frames to choose; all sampled frames where there are fewer."""

    policy: Literal[
        "top-k", "uniform", "min-gap", "bin-max", "aks", "bolt", "wfs-sb", "dig", "q-frame"
    ] = "top-k"
    """How frames are chosen by their scores."""

    policy_param: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=VALUE")
    ] = ()
    """A parameter of the policy, such as min_gap_s=5; may be given several times."""

    rate_hz: float = SAMPLING.rate_hz
    """Frames looked at per second of video."""

    max_frames: int | None = None
    """Frames looked at in all; longer videos are thinned evenly. None takes 512, or fewer where
    the model takes fewer."""

    sampling_rule: SamplingRule = SAMPLING.rule
    """How long videos are thinned: as the reference trains, or as its benchmark runs."""

    json: str = "-"
    """File for the result, or - for stdout."""

    save_frames: Path | None = None
    """Directory for the chosen frames as pictures at the video's own size."""

    frame_format: Literal["jpg", "png"] = "jpg"
    """Format of these pictures."""

    report: Path | None = None
    """File for a page to look at: HTML with the scores over time and the frames, in one piece."""

    plot: Path | None = None
    """File for a figure of the same, for papers: .png, .pdf or .svg. Needs itg-model[plot]."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    dtype: str = "auto"
    """auto, float32, float16 or bfloat16."""

    precision: Literal["native", "fp8"] = "native"
    """fp8 rounds to 8 bits what is multiplied: faster on Ada and Hopper GPUs, and scores move."""

    decode: Literal["auto", "pyav", "decord", "nvdec"] = "auto"
    """What reads the video: auto is pyav; nvdec is the GPU's decoder, needs itg-model[nvdec]."""

    max_pooled_side: int | None = None
    """Gives each frame a smaller grid of tokens than the model would: faster, approximate."""

    @property
    def asks_many(self) -> bool:
        """Whether there may be more than one video or question."""
        return self.questions is not None or (self.video is not None and self.video.is_dir())

    def to_sampling(self, max_frames: int = SAMPLING.max_frames) -> SamplingConfig:
        """Gathers the options that say which frames are looked at; `max_frames` is the default."""
        if self.max_frames is not None:
            max_frames = self.max_frames
        return SamplingConfig(rate_hz=self.rate_hz, max_frames=max_frames, rule=self.sampling_rule)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `itg-select`; see `Request`, and `itg_model.ui.Page` for `--ui`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if says_version(arguments, "itg-select", "itg-model"):
        return 0
    try:
        if "--ui" in arguments:
            return _serve([argument for argument in arguments if argument != "--ui"])
        try:
            request = tyro.cli(join_help(Request), prog="itg-select", args=arguments)
            _check(request)
        except (ValueError, OSError) as error:
            return _fail(error)
        if request.model == TINY:
            print(f"itg-select: {TINY_WARNING}", file=sys.stderr)
        try:
            return _run_many(request) if request.asks_many else _run(request)
        except (ItgError, ValueError, OSError) as error:
            return _fail(error)
    except KeyboardInterrupt:
        print("itg-select: interrupted", file=sys.stderr)
        return 130


def _serve(arguments: Sequence[str]) -> int:
    from itg_model.ui import serve

    try:
        serve(arguments)
    except (ItgError, ValueError, OSError) as error:
        return _fail(error)
    return 0


def _check(request: Request) -> None:
    """Finds faults of the request before anything costly starts."""
    request.to_sampling()
    if request.top_k < 1:
        raise ValueError(f"--top-k must be >= 1, got {request.top_k}")
    if request.max_pooled_side is not None and request.max_pooled_side < 1:
        raise ValueError(f"--max-pooled-side must be >= 1, got {request.max_pooled_side}")
    parse_policy_params(request.policy, request.policy_param)
    _check_question(request)
    if request.save_frames is not None:
        if request.save_frames.is_file():
            raise ValueError(f"--save-frames {request.save_frames}: not a directory")
        _check_may_write("--save-frames", request.save_frames)
    _check_outputs(request)
    # imported here and below: --help and a typo should not wait for torch
    from itg_model.devices import resolve_device, resolve_dtype
    from itg_model.frames import check_decode
    from itg_model.linear import check_fp8

    device = resolve_device(request.device)
    dtype = resolve_dtype(request.dtype, device)
    if request.precision == "fp8":
        check_fp8(device, dtype)
    check_decode(request.decode, device)


def _check_question(request: Request) -> None:
    if request.questions is not None and request.question is not None:
        raise ValueError("QUESTION and --questions exclude each other")
    if request.questions is None:
        if request.video is None or request.question is None:
            raise ValueError("give VIDEO and QUESTION, or --questions FILE; see --help")
        if not request.question.strip():
            raise ValueError("the question must not be blank")
        if any("\ud800" <= char <= "\udfff" for char in request.question):
            # what Python makes of bytes in an argument that are no UTF-8; no tokenizer takes it
            raise ValueError("the question must be text in UTF-8")
        if not request.video.exists():
            raise ValueError(f"{request.video}: no such file")
    if request.asks_many:
        for option in ("save_frames", "report", "plot"):
            if getattr(request, option) is not None:
                raise ValueError(
                    f"--{option.replace('_', '-')} is for one question about one video"
                )


def _check_outputs(request: Request) -> None:
    json_file = None if request.json == "-" else Path(request.json)
    outputs = {"--json": json_file, "--report": request.report, "--plot": request.plot}
    for option, path in outputs.items():
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{option} {path}: no such directory")
        if path is not None and path.is_dir():
            raise ValueError(f"{option} {path}: is a directory, not a file")
        if path is not None:
            # many results go into the file itself; one replaces it, which its folder must allow
            stays = request.asks_many or _is_no_file(path)
            target = Path(os.path.realpath(path))
            _check_may_write(option, target if stays else target.parent)
        if path is not None and _is_input(path, request):
            raise ValueError(f"{option} {path}: would overwrite what is to be read")
        if path is not None and option != "--json" and request.decode == "nvdec":
            raise ValueError(
                f"{option} needs the frames, which --decode nvdec leaves on the GPU; "
                "leave one of the two out"
            )
    # several may go to /dev/null
    named = [p.absolute() for p in outputs.values() if p is not None and not _is_no_file(p)]
    if len(set(named)) < len(named):
        raise ValueError("--json, --report and --plot must name different files")
    if request.plot is not None:
        from itg_model.plot import check_plot

        check_plot(request.plot)


def _check_may_write(option: str, path: Path) -> None:
    """Refuses what cannot be written, or made in the nearest folder that is there."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK):
        raise ValueError(f"{option}: {there} cannot be written, by its mode or its file system")


def _is_no_file(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _is_input(path: Path, request: Request) -> bool:
    """Whether an output is the video or the file of questions, by whatever name."""
    inputs = [request.questions, None if request.asks_many else request.video]
    return path.exists() and any(
        file is not None and file.exists() and path.samefile(file) for file in inputs
    )


def _run_many(request: Request) -> int:
    from itg_model.batch import run_many, tell_others

    summary, num_failed = run_many(request)
    print(f"itg-select: {summary}", file=sys.stderr)
    tell_others(waits=num_failed > 0)
    return 1 if num_failed else 0


def _run(request: Request) -> int:
    from itg_data.timeline import Thumbnails

    from itg_model.export import save_frames
    from itg_model.journal import naming

    thumbnails = Thumbnails() if request.report or request.plot else None
    selection = _select(request, thumbnails)
    # one field a line: readable, and no score has a line of its own
    fields = to_json(selection).items()
    lines = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in fields]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if request.json == "-":
        with naming("stdout"):
            sys.stdout.write(text)
            sys.stdout.flush()
    else:
        from itg_data.files import write_atomic

        write_atomic(Path(request.json), text)
    summary = f"chose {len(selection.selected)} of {selection.num_sampled} frames looked at"
    if selection.missing_source_idx:
        summary += f"; {len(selection.missing_source_idx)} more are missing from the file"
    if request.save_frames is not None:
        save_frames(selection, request.save_frames, request.frame_format)
        summary += f"; pictures in {request.save_frames}"
    if thumbnails is not None:
        summary += _picture(request, selection, thumbnails)
    print(f"itg-select: {summary}", file=sys.stderr)
    return 0


def _picture(request: Request, selection: FrameSelection, thumbnails: "Thumbnails") -> str:
    """Writes the page and the figure, and says where they lie."""
    said = ""
    if request.report is not None:
        from itg_model.report import write_report

        write_report(request.report, selection, thumbnails)
        said += f"; page in {request.report}"
    if request.plot is not None:
        from itg_model.plot import draw_selection

        chosen = thumbnails.pick([frame.source_idx for frame in selection.selected])
        draw_selection(request.plot, selection, chosen)
        said += f"; figure in {request.plot}"
    return said


def _select(request: Request, thumbnails: "Thumbnails | None" = None) -> FrameSelection:
    assert request.video is not None  # _check, as below
    assert request.question is not None
    # a look at the packets: a broken file should not cost the loading of a large model
    open_video(request.video).close()
    with _show_progress(request.video.name) as progress:
        grounder = load_grounder(request)
        return grounder.select(
            request.video,
            request.question,
            request.top_k,
            request.to_sampling(grounder.max_frames),
            request.policy,
            progress,
            None if thumbnails is None else thumbnails.add,
            parse_policy_params(request.policy, request.policy_param),
        )


def load_grounder(request: Request, device: str | None = None) -> "FrameGrounder":
    """Loads the model that a request asks for, on its device or another."""
    from itg_model.grounder import FrameGrounder

    return FrameGrounder.from_pretrained(
        request.model,
        device or request.device,
        request.dtype,
        vision_checkpoint=request.vision_checkpoint,
        precision=request.precision,
        decode=request.decode,
        max_pooled_side=request.max_pooled_side,
    )


@contextmanager
def _show_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("loading the model", total=None)

        def show(num_done: int, num_frames: int) -> None:
            reading = f"reading {escape(to_one_line(name))}"
            bars.update(task, description=reading, completed=num_done, total=num_frames)

        yield show


def _fail(error: ItgError | OSError | ValueError) -> int:
    print(f"itg-select: {in_one_line(error)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
