"""What a run that is started again may take over from before, and what it must not."""

import os
import time
from pathlib import Path

import pytest
from itg_data.annotate.features import THUMBNAILS
from itg_data.annotate.frames import PictureConfig
from itg_data.annotate.qa import ChangedQaError
from itg_data.annotate.records import Annotation, DroppedSample
from itg_data.annotate.requests import AnnotatorError, Sampler
from itg_data.annotate.run import run
from itg_data.annotate.shards import ChangedVideoError
from itg_data.jsonl import read_jsonl


def annotations(config) -> list[Annotation]:
    return list(read_jsonl(config.out / "annotations.jsonl", Annotation))


def drops(config) -> dict[str, str]:
    return {d.id: d.reason for d in read_jsonl(config.out / "dropped.jsonl", DroppedSample)}


@pytest.fixture
def films(videos, tmp_path) -> Path:
    """A folder of three short videos."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.mp4").write_bytes((videos / "short.mp4").read_bytes())
    return folder


@pytest.fixture
def stop_after_a_shard(make_config, make_pair, server, films, monkeypatch):
    """Starts a run that stops when the first of its three videos is in a shard of its own."""
    monkeypatch.setattr("itg_data.annotate.shards.VIDEOS_PER_SHARD", 1)
    pairs = [make_pair(n, video=f"{n}.mp4") for n in range(3)]

    def stop(**changes):
        config = make_config(pairs, **{"videos": films, "num_decoders": 1, **changes})

        def fail(asked):
            if asked.inputs.get("question") != pairs[2].question:
                return server.sensible(asked)
            while not list(config.out.glob("shards-*/000000.jsonl")):
                time.sleep(0.01)
            return server.Reply("bad key", 401)

        server.reply = fail
        with pytest.raises(AnnotatorError, match="bad key"):
            run(config)
        server.reply = server.sensible
        return config

    return stop


def test_a_resumed_run_takes_finished_shards_over(stop_after_a_shard, films):
    config = stop_after_a_shard()
    # had it made the shard anew, it would have opened this: the same size and time, and no video
    seen = (films / "0.mp4").stat()
    (films / "0.mp4").write_bytes(bytes(seen.st_size))
    os.utime(films / "0.mp4", ns=(seen.st_atime_ns, seen.st_mtime_ns))
    run(config)
    assert [annotation.id for annotation in annotations(config)] == ["q0", "q1", "q2"]


def test_a_resumed_run_with_other_videos_keeps_nothing_of_the_first_ones(
    stop_after_a_shard, videos, films, tmp_path
):
    stop_after_a_shard()
    others = tmp_path / "others"
    others.mkdir()
    for number in range(3):
        (others / f"{number}.mp4").symlink_to(videos / "long.mp4")
    config = stop_after_a_shard(videos=others)
    run(config)
    assert [annotation.duration_s for annotation in annotations(config)] == [12.0] * 3
    assert (config.out / "videos").resolve() == others


@pytest.mark.parametrize("before", [b"half of a film", None])
def test_a_video_that_is_whole_at_the_second_start_is_annotated(stop_after_a_shard, films, before):
    whole = (films / "0.mp4").read_bytes()
    (films / "0.mp4").unlink()
    if before is not None:
        (films / "0.mp4").write_bytes(before)
    config = stop_after_a_shard()
    (films / "0.mp4").write_bytes(whole)
    run(config)
    assert drops(config) == {}
    assert [annotation.id for annotation in annotations(config)] == ["q0", "q1", "q2"]


def test_a_video_that_is_gone_at_the_second_start_is_dropped(stop_after_a_shard, films):
    config = stop_after_a_shard()
    (films / "0.mp4").unlink()
    run(config)
    assert drops(config) == {"q0": "unreadable_video"}


def test_a_video_that_changes_while_the_run_goes_on_ends_it_and_the_next_start_mends_that(
    make_config, make_pair, server, films, videos
):
    def replace(asked):
        if asked.stage == "check":
            (films / "0.mp4").write_bytes((videos / "long.mp4").read_bytes())
        return server.sensible(asked)

    server.reply = replace
    config = make_config([make_pair(0, video="0.mp4")], videos=films)
    with pytest.raises(
        ChangedVideoError, match=r"0.mp4 changed while the run went on; start again"
    ):
        run(config)
    server.reply = server.sensible
    run(config)
    assert [annotation.duration_s for annotation in annotations(config)] == [12.0]


def overwrite(path: Path, content: str) -> None:
    path.write_text(content)


def replace(path: Path, content: str) -> None:
    """As most editors save."""
    path.with_suffix(".new").write_text(content)
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("save", [overwrite, replace])
@pytest.mark.parametrize("after", ["", "moved"])
def test_a_file_of_pairs_that_is_edited_while_the_run_goes_on_ends_it_with_one_line(
    make_config, make_pair, server, films, monkeypatch, save, after
):
    monkeypatch.setattr("itg_data.annotate.shards.VIDEOS_PER_SHARD", 1)
    pairs = [make_pair(n, video=f"{n}.mp4") for n in range(3)]
    config = make_config(pairs, videos=films, num_decoders=1, concurrency=1)
    edited = config.qa.read_text().replace("square 2", f"square 2 {after}".strip())
    edited = edited.replace("square 0", "the first square")

    def edit(asked):
        if asked.number == 0:
            save(config.qa, edited)
        return server.sensible(asked)

    server.reply = edit
    with pytest.raises(ChangedQaError, match=r"qa.jsonl changed while the run went on; start ag"):
        run(config)
    server.reply = server.sensible
    run(config)
    assert annotations(config)[0].question == "Where does the first square go?"
    assert len(annotations(config)) == 3


def test_a_fingerprint_follows_from_all_that_decides_the_set(make_config, make_pair, tmp_path):
    (tmp_path / "other").mkdir()
    changes = [
        {},
        {"videos": tmp_path / "other"},
        {"sampler": Sampler(model="another")},
        {"pictures": PictureConfig(per_clip=4)},
        {"pictures": PictureConfig(image_size=100)},
        {"features": THUMBNAILS},
    ]
    configs = [make_config([make_pair(0)], **change) for change in changes]
    prints = {config.fingerprint("0" * 64) for config in configs}
    prints.add(configs[0].fingerprint("1" * 64))
    assert len(prints) == len(changes) + 1
    same = make_config([make_pair(0)], concurrency=1, num_decoders=1, out=tmp_path / "elsewhere")
    assert same.fingerprint("0" * 64) in prints


def test_other_weights_in_the_same_folder_are_other_features(make_config, make_pair, tmp_path):
    weights = tmp_path / "clip" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    config = make_config([make_pair(0)], features=str(weights.parent))
    before = config.fingerprint("0" * 64)
    assert config.fingerprint("0" * 64) == before
    weights.write_bytes(b"new weights")
    assert config.fingerprint("0" * 64) != before
