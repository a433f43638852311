"""Videos whose times are odd: before zero, or wrong by years."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from itg_data import cli
from itg_data.annotate.records import Annotation, DroppedSample
from itg_data.annotate.run import run
from itg_data.jsonl import read_jsonl
from itg_data.records import GroundingRecord
from itg_data.sets import SetFolder
from itg_data.sets.check import check_set

MS = Fraction(1, 1000)


def encode_at(path: Path, times_ms: list[int]) -> None:
    """Encodes grey frames with times that a muxer would put right if it were let."""
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.time_base = stream.codec_context.time_base = MS
        for number, time_ms in enumerate(times_ms):
            image = np.full((64, 96, 3), 3 * number % 256, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time_ms, MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture
def config_of(make_config, make_pair, videos, tmp_path):
    """A run of an odd video, `q1`, after one that has nothing odd about it, `q0`."""

    def make(name: str, times_ms: list[int]):
        folder = tmp_path / "films"
        folder.mkdir()
        (folder / "short.mp4").symlink_to(videos / "short.mp4")
        encode_at(folder / name, times_ms)
        pairs = [make_pair(0, video="short.mp4"), make_pair(1, video=name)]
        return make_config(pairs, videos=folder)

    return make


def drops(config) -> dict[str, tuple[str, str]]:
    dropped = read_jsonl(config.out / "dropped.jsonl", DroppedSample)
    return {drop.id: (drop.reason, drop.detail) for drop in dropped}


@pytest.mark.parametrize(("start_ms", "end_s"), [(-520, 2.0), (-2520, 2.0)])
def test_labels_of_a_video_that_begins_before_zero_begin_at_zero(config_of, start_ms, end_s):
    config = config_of("early.ts", [*range(start_ms, 2000, 40)])
    run(config)
    annotation = list(read_jsonl(config.out / "annotations.jsonl", Annotation))[1]
    assert annotation.start_s == start_ms / 1000
    record = list(read_jsonl(config.out / "records.jsonl", GroundingRecord))[1]
    assert [(span.start_s, span.end_s) for span in record.spans] == [(0.0, pytest.approx(end_s))]
    report = check_set(SetFolder(config.out), config.out)
    assert not [str(finding) for finding in report.findings if finding.is_fault]


def test_a_video_whose_labels_all_lie_before_zero_costs_its_own_pairs_alone(config_of):
    config = config_of("early.ts", [*range(-4000, -2000, 40)])
    run(config)
    assert list(drops(config)) == ["q1"]
    reason, detail = drops(config)["q1"]
    assert reason == "unreadable_video"
    assert detail.startswith("starts at -4 s on its own clock: ")


def test_a_video_that_one_bad_timestamp_makes_last_for_years_costs_its_own_pairs_alone(config_of):
    config = config_of("years.mkv", [*range(0, 1000, 40), 4_000_000_000_000])
    run(config)
    assert drops(config) == {
        "q1": (
            "unreadable_video",
            "its times say that its 26 frames last 4e+09 s, at most 172800 s are believed",
        )
    }


def test_a_dry_run_counts_no_clips_of_a_video_that_would_last_for_years(config_of, capsys):
    config = config_of("years.mkv", [*range(0, 1000, 40), 4_000_000_000_000])
    told = {"videos": config.videos, "qa": config.qa, "out": config.out, "model": "m"}
    options = [f"--{name}={value}" for name, value in told.items()]
    assert cli.main(["annotate", *options, "--base-url=http://x/v1", "--dry-run"]) == 0
    estimated = json.loads(capsys.readouterr().out)
    assert (estimated["num_unreadable"], estimated["num_clips"]) == (1, 1)
