import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from itg_data.metrics import num_selected, recall
from itg_data.records import label_frames
from itg_data.synthetic import (
    COMBINATIONS,
    SyntheticConfig,
    ask_questions,
    load_or_write_dataset,
    render,
    write_script,
)
from itg_data.synthetic.script import COLOURS

SMALL = SyntheticConfig(num_train=2, num_heldout=1, duration_s=12, fps=2, height=32, width=48)


def questions_of(config, split, numbers):
    for number in numbers:
        script = write_script(config, split, number)
        yield script, ask_questions(config, split, number, script, f"videos/{split}-{number}.mp4")


def digest(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_heldout_videos_show_only_combinations_that_training_never_shows():
    config = SyntheticConfig()
    shown = {
        split: {e.shows for n in range(40) for e in write_script(config, split, n).events}
        for split in ("train", "heldout")
    }
    assert shown["train"]
    assert shown["heldout"]
    assert not shown["train"] & shown["heldout"]


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize(
    "pair", [("colour", "shape"), ("colour", "motion"), ("shape", "motion")], ids="-".join
)
def test_every_pair_of_attributes_occurs_in_both_splits(split, pair):
    def pairs(combinations):
        return {tuple(getattr(c, name) for name in pair) for c in combinations}

    assert pairs(c for c in COMBINATIONS if c.split == split) == pairs(COMBINATIONS)


def test_all_question_types_are_asked_and_no_clue_means_the_whole_video():
    for script, records in questions_of(SyntheticConfig(), "train", range(20)):
        types = {record.question_type for record in records}
        assert types == {"semantic", "motion", "semantic_motion", "no_clue"}
        (no_clue,) = (r for r in records if r.question_type == "no_clue")
        assert [(s.start_s, s.end_s) for s in no_clue.spans] == [(0, script.duration_s)]


def test_spans_are_exactly_the_events_that_the_question_speaks_of():
    for script, records in questions_of(SyntheticConfig(), "heldout", range(20)):
        for record in records:
            words = set(record.question.rstrip("?").replace("stays still", "still").split())
            if record.question_type == "no_clue":
                continue
            expected = []
            for event in script.events:
                traits = {
                    "semantic": {event.shows.colour, event.shows.shape},
                    "motion": {event.shows.motion},
                    "semantic_motion": {event.shows.colour, event.shows.shape, event.shows.motion},
                }[record.question_type]
                if traits <= words:
                    expected.append(event.span)
            assert list(record.spans) == expected


@pytest.mark.parametrize("word", ["left", "right", "upper", "lower"])
def test_a_place_question_is_answered_exactly_by_frames_with_something_there(word):
    config = SyntheticConfig(difficulty=0.0, num_place_questions=4, fps=16)
    script, records = next(questions_of(config, "train", [3]))
    (asked,) = (r for r in records if r.question == f"What is in the {word} part?")
    colours = np.array(list(COLOURS.values()), dtype=np.int16)
    axis, sign = {"left": (1, -1), "right": (1, 1), "upper": (0, -1), "lower": (0, 1)}[word]
    for frame_idx, image in enumerate(render(config, "train", 3, script)):
        distance = np.abs(image[:, :, None].astype(np.int16) - colours).max(axis=3).min(axis=2)
        places = np.argwhere(distance <= 3)
        if len(places) <= 50:
            off_middle = -1.0
        else:
            # the middle of what is seen: all shapes but the triangle are as wide as they are high
            extent = (places[:, axis].min() + places[:, axis].max()) / 2
            off_middle = sign * (extent / image.shape[axis] - 0.5)
        labelled = label_frames(np.array([frame_idx / config.fps]), asked.spans)[0]
        if abs(off_middle - 1 / 8) > 0.04:  # the border itself is a matter of pixels
            assert labelled == (off_middle > 1 / 8), frame_idx / config.fps


def test_place_questions_leave_the_others_as_they_are():
    for number in range(10):
        script = write_script(SyntheticConfig(), "train", number)
        plain = ask_questions(SyntheticConfig(), "train", number, script, "v.mp4")
        config = SyntheticConfig(num_place_questions=3)
        more = ask_questions(config, "train", number, script, "v.mp4")
        assert more[: len(plain)] == plain
        assert 1 <= len(more) - len(plain) <= 3


def test_the_object_is_on_screen_exactly_during_its_spans():
    config = SyntheticConfig(difficulty=0.0)
    script = write_script(config, "train", 0)
    colours = np.array(list(COLOURS.values()), dtype=np.int16)
    for frame_idx, image in enumerate(render(config, "train", 0, script)):
        time_s = frame_idx / config.fps
        distance = np.abs(image[:, :, None].astype(np.int16) - colours).max(axis=3)
        seen = {list(COLOURS)[c] for c in range(len(colours)) if (distance[..., c] <= 3).sum() > 50}
        due = {e.shows.colour for e in script.events if e.span.start_s <= time_s < e.span.end_s}
        assert seen == due, time_s


def test_choosing_the_brightest_or_the_most_colourful_frames_finds_little():
    config = SyntheticConfig()
    found = {"brightest": [], "most colourful": []}
    for number in range(12):
        script = write_script(config, "heldout", number)
        seconds = list(render(config, "heldout", number, script))[:: config.fps]
        cues = {
            "brightest": [image.mean() for image in seconds],
            "most colourful": [np.ptp(image.astype(int), axis=2).mean() for image in seconds],
        }
        for record in ask_questions(config, "heldout", number, script, "v.mp4"):
            if record.question_type == "no_clue":
                continue
            labels = label_frames(np.arange(len(seconds)), record.spans)
            for name, cue in cues.items():
                best = np.argsort(cue)[-num_selected(len(seconds), 0.1) :]
                found[name].append(recall(best, labels))
    # one frame in ten by chance; a cue that gave twice that would answer for a model
    assert {name: round(np.mean(values), 3) for name, values in found.items()} == pytest.approx(
        dict.fromkeys(found, 0.1), abs=0.1
    )


def test_relevant_frames_are_rare_and_never_none():
    shares = [
        label_frames(np.arange(script.duration_s), record.spans).mean()
        for script, records in questions_of(SyntheticConfig(), "heldout", range(40))
        for record in records
        if record.question_type != "no_clue"
    ]
    assert min(shares) > 0
    assert 0.05 < np.mean(shares) < 0.2


def test_a_set_is_real_video_and_the_same_bytes_however_many_processes_write_it(tmp_path):
    records = load_or_write_dataset(tmp_path / "a", SMALL, num_workers=1)
    load_or_write_dataset(tmp_path / "b", SMALL, num_workers=2)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    for video in {record.video for record in records}:
        with av.open(str(tmp_path / "a" / video)) as container:
            frames = list(container.decode(video=0))
        assert len(frames) == SMALL.duration_s * SMALL.fps
        assert (frames[0].height, frames[0].width) == (SMALL.height, SMALL.width)


def test_another_seed_gives_another_set():
    other = SyntheticConfig(seed=1)
    assert write_script(other, "train", 0) != write_script(SyntheticConfig(), "train", 0)


def test_a_set_is_read_back_instead_of_written_twice(tmp_path):
    first = load_or_write_dataset(tmp_path / "set", SMALL)
    before = digest(tmp_path / "set")
    assert load_or_write_dataset(tmp_path / "set", SMALL) == first
    assert digest(tmp_path / "set") == before


def test_a_folder_that_is_not_this_set_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "config.json").write_text(json.dumps({"seed": 1}))
    with pytest.raises(FileExistsError, match="not the scripted set asked for"):
        load_or_write_dataset(tmp_path / "set", SMALL)
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["config.json"]


def test_an_interrupted_set_leaves_nothing_behind(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_write_dataset(tmp_path / "set", SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


WRITE_MANY = """
import pathlib, sys
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
if __name__ == "__main__":
    size = {"duration_s": 12, "fps": 2, "height": 32, "width": 48}
    config = SyntheticConfig(num_train=5000, **size)
    note = lambda done, total: print(done, flush=True)
    load_or_write_dataset(pathlib.Path(sys.argv[1]), config, num_workers=2, progress=note)
"""


def workers_of(pid):
    stats = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        # any process may end between being listed and being read
        with contextlib.suppress(OSError):
            stats.append(path.read_text())
    # pid (name) state parent group ...
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return sum(int(group) == pid and state != "Z" for state, _, group, *_ in fields)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_writer_that_is_stopped_takes_its_workers_with_it(how, tmp_path):
    script = tmp_path / "write.py"
    script.write_text(WRITE_MANY)
    writer = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "set")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert writer.stdout.readline() == "1\n"
    # as a terminal sends Ctrl-C: to all of them
    (os.killpg if how == signal.SIGINT else os.kill)(writer.pid, how)
    _, err = writer.communicate(timeout=120)
    assert err.count("Traceback") == (how == signal.SIGINT)
    deadline_s = time.monotonic() + 60
    while workers_of(writer.pid) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert workers_of(writer.pid) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("difficulty", 1.5),
        ("duration_s", 3),
        ("fps", 0),
        ("width", 33),
        ("num_train", -1),
        ("seed", -1),
        ("num_place_questions", 5),
    ],
)
def test_config_errors_name_the_field_and_the_value(field, value):
    with pytest.raises(ValueError, match=rf"synthetic\..*{field}.*{value}"):
        SyntheticConfig(**{field: value})


def test_a_set_that_another_process_wrote_meanwhile_is_taken(tmp_path):
    root = tmp_path / "set"

    def write_the_same_first(done, total):
        if done == total:
            load_or_write_dataset(root, SMALL)

    records = load_or_write_dataset(root, SMALL, progress=write_the_same_first)
    assert records == load_or_write_dataset(root, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    left, living = tmp_path / ".set-left", tmp_path / ".set-living"
    for folder in (left, living):
        (folder / "videos").mkdir(parents=True)
    handle = os.open(living, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    load_or_write_dataset(tmp_path / "set", SMALL)
    os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".set-living", "set"]
