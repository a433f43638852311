import json
import sys

import numpy as np
import pytest
from itg_data.records import FrameSelection, TimeSpan, from_json, to_json
from itg_data.sampling import SamplingConfig
from itg_data.timeline import Thumbnails
from itg_data.timeline.page import record_in
from itg_data.video import open_video
from itg_model import FrameGrounder
from itg_model.cli import main
from itg_model.plot import MAX_PICTURES, draw_selection
from itg_model.report import write_report
from PIL import Image


@pytest.fixture
def grounder(tiny_model, tokenizer) -> FrameGrounder:
    return FrameGrounder(tiny_model, tokenizer, "tiny", frame_chunk=4)


@pytest.fixture
def arguments(checkpoint_dir, video) -> list[str]:
    return [str(video), "where is it", "--model", str(checkpoint_dir), "--device", "cpu"]


def test_frames_are_shown_as_they_are_decoded_and_decoded_once(grounder, video, monkeypatch):
    thumbnails, opened = Thumbnails(), []
    monkeypatch.setattr(
        "itg_model.frames.open_video",
        lambda path, **options: (opened.append(path), open_video(path, **options))[1],
    )
    selection = grounder.select(video, "where", top_k=3, on_frames=thumbnails.add)
    assert opened == [video]
    assert tuple(thumbnails.time_s) == selection.times_s
    with open_video(video) as reader:
        wanted = reader.read(thumbnails.source_idx).frames
    assert np.array_equal(thumbnails.pick(thumbnails.source_idx), wanted)


def test_frames_of_a_video_encoded_before_cannot_be_shown(grounder, video):
    encoded = grounder.encode(video)
    with pytest.raises(ValueError, match=r"pass it to encode\(\)"):
        grounder.select(encoded, "where", on_frames=Thumbnails().add)


def test_the_page_says_what_was_asked_and_of_what(grounder, video, tmp_path):
    thumbnails = Thumbnails()
    sampling = SamplingConfig(rate_hz=2)
    selection = grounder.select(video, "where & why", 3, sampling, on_frames=thumbnails.add)
    write_report(tmp_path / "out.html", selection, thumbnails)
    page = (tmp_path / "out.html").read_text()
    assert from_json(FrameSelection, record_in(page)) == selection
    for words in (
        "where &amp; why</h1>",
        "square.mp4</bdi>",
        "<bdi>tiny</bdi>",
        "<bdi>top-k, 3 frames</bdi>",
        "<bdi>20, sampled by train-2hz-max512</bdi>",
    ):
        assert words in page
    assert "Missing" not in page


def test_the_page_says_how_many_frames_are_missing(grounder, video, tmp_path):
    thumbnails = Thumbnails()
    selection = grounder.select(video, "where", on_frames=thumbnails.add)
    lossy = from_json(
        FrameSelection, json.loads(json.dumps(to_json(selection))) | {"missing_source_idx": [2, 3]}
    )
    write_report(tmp_path / "out.html", lossy, thumbnails)
    assert "2 frames" in (tmp_path / "out.html").read_text()


def test_the_command_writes_the_page_and_the_figure(arguments, capsys, tmp_path):
    page, figure = tmp_path / "out.html", tmp_path / "out.png"
    assert main([*arguments, "--top-k", "3", "--report", str(page), "--plot", str(figure)]) == 0
    captured = capsys.readouterr()
    assert record_in(page.read_text()) == json.loads(captured.out)
    with Image.open(figure) as image:
        assert image.width == 2000
    assert captured.err == (
        f"itg-select: chose 3 of 10 frames looked at; page in {page}; figure in {figure}\n"
    )


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--report", "/no/such/out.html", "--report /no/such/out.html: no such directory"),
        ("--report", "/", "--report /: is a directory, not a file"),
        ("--plot", "/no/such/out.png", "--plot /no/such/out.png: no such directory"),
        ("--plot", "out.gif", "a plot's name must end in .png, .pdf, .svg, got out.gif"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    option, name, message, arguments, capsys, monkeypatch
):
    monkeypatch.setattr("itg_model.cli._select", None)
    assert main([*arguments, option, name]) == 2
    assert capsys.readouterr().err == f"itg-select: {message}\n"


def test_a_plot_without_matplotlib_says_what_to_install(arguments, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*arguments, "--plot", str(tmp_path / "out.png")]) == 2
    wanted = "itg-select: a plot needs matplotlib: pip install 'itg-model[plot]'\n"
    assert capsys.readouterr().err == wanted


@pytest.mark.parametrize("suffix", [".png", ".PDF", ".svg"])
def test_the_ending_of_a_plot_is_its_format(suffix, grounder, video, tmp_path):
    thumbnails = Thumbnails()
    # neither a formula, nor a control, nor half of a character may stop it
    question = "costs $5 or x_{$ \udcff\x00 \u202e?"
    selection = grounder.select(video, "where", top_k=10, on_frames=thumbnails.add)
    asked = from_json(
        FrameSelection, json.loads(json.dumps(to_json(selection) | {"question": question}))
    )
    chosen = thumbnails.pick([frame.source_idx for frame in selection.selected])
    path = tmp_path / f"out{suffix}"
    draw_selection(path, asked, chosen, [TimeSpan(start_s=1, end_s=4)])
    magic = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix.lower()]
    assert path.read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="must be the 10 chosen ones, got 9"):
        draw_selection(path, asked, chosen[1:])


def test_a_plot_shows_no_more_than_the_best_frames(grounder, video, tmp_path, monkeypatch):
    thumbnails, drawn = Thumbnails(), []
    monkeypatch.setattr(
        "itg_model.plot._draw_frames",
        lambda _, selected, frames, grid: drawn.append((selected, grid)),
    )
    selection = grounder.select(
        video, "where", 40, SamplingConfig(rate_hz=4), on_frames=thumbnails.add
    )
    chosen = thumbnails.pick([frame.source_idx for frame in selection.selected])
    draw_selection(tmp_path / "out.png", selection, chosen)
    ((shown, grid),) = drawn
    assert sorted(frame.rank for frame in shown) == list(range(MAX_PICTURES))
    assert grid == (4, 8)
