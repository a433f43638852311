import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from itg_data.annotate.records import LabelledFrame
from itg_data.cli import main
from itg_data.jsonl import read_jsonl
from itg_data.published import write_published
from itg_data.records import GroundingRecord
from itg_data.sets import SetFolder
from itg_data.sets.check import CheckReport, check_set, look_at_video
from itg_data.sets.statistics import SetStatistics
from PIL import Image


@pytest.fixture
def videos(scripted_root: Path, tmp_path: Path) -> Path:
    """The scripted videos, to be damaged."""
    return Path(shutil.copytree(scripted_root / "videos", tmp_path / "raw"))


def check(root: Path) -> CheckReport:
    return check_set(SetFolder(root), root)


def faults(report: CheckReport) -> list[str]:
    return [str(finding) for finding in report.findings if finding.is_fault]


def test_a_set_as_it_was_made_is_sound(annotated_set):
    report = check(annotated_set())
    assert report.is_sound
    assert report.findings == ()
    assert report.statistics.num_samples > 6


def test_a_scripted_set_is_sound_as_well(scripted_root, capsys):
    assert main(["check", str(scripted_root)]) == 0
    assert capsys.readouterr().out.startswith("sound: ")


def test_lines_that_break_the_schema_are_named_and_the_rest_is_checked(annotated_set):
    root = annotated_set()
    lines = (root / "annotations.jsonl").read_text().splitlines(keepends=True)
    lines[1] = "{}\n"
    lines[3] = lines[3].replace('"clip_s": 5', '"clip_s": "5"')
    (root / "annotations.jsonl").write_text("".join(lines))
    found = faults(check(root))
    assert "fault: annotations.jsonl:2: schema_version must be 1, got None" in found
    assert "fault: annotations.jsonl:4: clip_s must be int, got '5'" in found
    assert "fault: records.jsonl: differs from annotations.jsonl from record 1 on" in found
    assert len(found) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"duration_s": 25.0, "captions": ("",) * 5}, "duration_s: is 25, the video's is 18"),
        (
            {"duration_s": 25.0, "captions": ("",) * 5, "candidate_s": (24,), "frames": (24,)},
            "spans[0]: ends at 25 s, the video at 18 s",
        ),
        ({"captions": ("",) * 5}, "captions: must be one for each of 4 clips, got 5"),
        (
            {"frames": (LabelledFrame(second=2, source_idx=72, relevant=True),)},
            "frames[0].source_idx: must be in 0..71, got 72",
        ),
        (
            {"frames": (LabelledFrame(second=2, source_idx=40, relevant=True),)},
            "frames[0].source_idx: frame 40 is shown at 10.0 s, not in second 2",
        ),
    ],
)
def test_times_are_held_against_the_real_video(change, message, annotated_set):
    if change.get("frames") == (24,):
        frame = LabelledFrame(second=24, source_idx=71, relevant=True)
        change = change | {"frames": (frame,), "clips": (4,)}
    seconds = change.get("candidate_s", tuple(range(18)))
    root = annotated_set({0: {"clips": (), "candidate_s": seconds} | change})
    (record, *_) = read_jsonl(root / "records.jsonl", GroundingRecord)
    assert f"fault: annotations.jsonl: {record.id}: {message}" in faults(check(root))


def test_clips_are_counted_as_annotating_counts_them(annotated_set):
    # times that are no round numbers add up to 15.000000000000002 s, say, which is no fourth clip
    change = {"duration_s": 15 + 1e-9, "captions": ("",) * 3, "clips": ()}
    found = faults(check(annotated_set({0: change})))
    assert not [fault for fault in found if "captions" in fault]


def test_what_is_there_twice_is_named(annotated_set, scripted_root):
    records = list(read_jsonl(scripted_root / "records.jsonl", GroundingRecord))
    again = {"question": f" {records[0].question.upper()} ", "answer": records[0].answer}
    found = faults(check(annotated_set({1: again, 2: {"id": records[0].id}})))
    assert found == [
        f"fault: annotations.jsonl: {records[1].id}: question: was asked of {records[0].video} "
        f"before, by {records[0].id}",
        f"fault: annotations.jsonl: {records[0].id}: id: is there twice",
    ]


def test_one_question_with_other_options_or_another_answer_is_another(annotated_set, scripted_root):
    records = list(read_jsonl(scripted_root / "records.jsonl", GroundingRecord))
    asked = {"question": "Which is true?", "answer": "The first."}
    of_one_video = [i for i, record in enumerate(records) if record.video == records[0].video][:3]
    others = [{"options": ("a mug", "a hat")}, {"options": ("rain",)}, {"answer": "None."}]
    changes = dict(zip(of_one_video, (asked | other for other in others), strict=True))
    assert not [fault for fault in faults(check(annotated_set(changes))) if "question" in fault]


def test_a_video_in_two_splits_is_a_leak(annotated_set):
    root = annotated_set({1: {"split": "heldout"}})
    (found,) = faults(check(root))
    assert found.endswith("of the same video, is in train: a leak")


@pytest.mark.parametrize(("copy", "is_leak"), [("train-00001", False), ("heldout-00000", True)])
def test_a_video_under_two_names_is_a_leak_if_the_names_are_in_two_splits(
    copy, is_leak, annotated_set, videos
):
    shutil.copy(videos / "train-00000.mp4", videos / f"{copy}.mp4")
    report = check(annotated_set(videos=videos))
    (finding,) = [f for f in report.findings if "has the content of" in f.message]
    assert finding.is_fault == is_leak
    assert finding.message.endswith("a leak") == is_leak


def test_no_videos_frame_times_outlive_the_look_at_it(annotated_set, monkeypatch):
    kept = []

    def look(path):
        facts = look_at_video(path)
        kept.append(weakref.ref(facts.times_s))
        return facts

    ask, outlived = SetStatistics.add, []

    def count(self, sample):
        outlived.extend(ref for ref in kept if ref() is not None)
        ask(self, sample)

    monkeypatch.setattr("itg_data.sets.check.look_at_video", look)
    monkeypatch.setattr(SetStatistics, "add", count)
    assert check(annotated_set()).is_sound
    assert len(kept) == 3
    assert outlived == []


def test_videos_that_are_missing_or_damaged_are_faults(annotated_set, videos):
    (videos / "train-00000.mp4").unlink()
    (videos / "train-00001.mp4").write_bytes(b"no video")
    found = faults(check(annotated_set(videos=videos)))
    assert [line.split(": ")[1] for line in found] == [
        "video videos/train-00000.mp4",
        "video videos/train-00001.mp4",
    ]


def test_files_that_do_not_follow_from_the_annotations_are_faults(annotated_set):
    root = annotated_set()
    lines = (root / "records.jsonl").read_text().splitlines(keepends=True)
    (root / "records.jsonl").write_text("".join(lines[:-1]))
    write_published(root / "video_itg_data.json", [])
    last = len(lines) - 1
    assert faults(check(root)) == [
        f"fault: records.jsonl: differs from annotations.jsonl from record {last} on",
        "fault: video_itg_data.json: differs from annotations.jsonl from record 0 on",
    ]
    (root / "records.jsonl").unlink()
    (root / "video_itg_data.json").write_text("[{")
    missing, broken = faults(check(root))
    assert missing == "fault: records.jsonl: is missing"
    assert broken.startswith("fault: video_itg_data.json: record 0: is not JSON")


def test_labels_that_look_alike_are_oddities_and_no_faults(annotated_set):
    changes = {i: {"question_type": "semantic", "clips": ()} for i in range(30)}
    whole = tuple(LabelledFrame(second=s, source_idx=4 * s, relevant=None) for s in range(18))
    for change in changes.values():
        change |= {"candidate_s": tuple(range(18)), "frames": whole}
    report = check(annotated_set(changes))
    assert report.is_sound
    assert [str(finding) for finding in report.findings] == [
        "oddity: question_type: 100% of the questions are of type semantic",
        "oddity: spans: half of the semantic questions have labels on over 90% of the video",
    ]


def test_exit_codes_tell_sound_unsound_and_no_set_apart(annotated_set, capsys):
    root = annotated_set({1: {"split": "held\x1b[31m\nout"}})
    assert main(["check", str(root)]) == 1
    *findings, summary = capsys.readouterr().out.splitlines()
    assert summary.startswith("unsound: ")
    assert summary.endswith(" 1 faults, 0 oddities")
    assert len(findings) == 1
    assert "is held\\x1b[31m\\nout, but " in findings[0]
    assert main(["check", str(root / "none")]) == 2
    assert "is no set" in capsys.readouterr().err


def test_input_that_cannot_be_is_one_line(annotated_set, tmp_path, capsys):
    root = annotated_set()
    (tmp_path / "file").touch()
    taken = str(tmp_path / "file")
    for arguments, complaint in (
        (["check", str(root), "--num-workers", "0"], "--num-workers must be >= 1, got 0"),
        (["view", str(root), "--out", taken, "--limit", "-1"], "--limit must be >= 0, got -1"),
        (["view", str(root), "--out", taken], f"{taken}: File exists"),
        (["stats", str(root), "--plots", taken], f"{taken}: File exists"),
        (["import", str(root / "video_itg_data.json"), "--out", taken], f"{taken}: File exists"),
    ):
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"itg-data: {complaint}\n"


def test_stats_tell_people_and_programs(annotated_set, tmp_path, capsys):
    root = annotated_set()
    assert main(["stats", str(root), "--plots", str(tmp_path / "plots" / "here")]) == 0
    table = capsys.readouterr().out
    for word in ("questions", "no_clip", "semantic_motion", "chosen clips", "labelled, no_clue"):
        assert word in table
    assert main(["stats", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_videos"] == 3
    drawn = {path.name for path in (tmp_path / "plots" / "here").iterdir()}
    assert drawn == {"types.png", "clips.png", "frames.png", "labelled.png", "durations.png"}
    with Image.open(tmp_path / "plots" / "here" / "types.png") as plot:
        assert plot.size == (960, 480)


@pytest.mark.parametrize(
    ("split", "shown"), [("\ud800", r"\ud800"), ("\x1b[2Jevil\nsplit", r"\x1b[2Jevil\nsplit")]
)
def test_a_split_can_neither_steer_the_terminal_nor_end_the_statistics(
    split, shown, scripted_root, tmp_path, capsysbinary
):
    first = json.loads((scripted_root / "records.jsonl").read_text().splitlines()[0])
    (tmp_path / "records.jsonl").write_text(json.dumps(first | {"split": split}) + "\n")
    assert main(["stats", str(tmp_path)]) == 0
    table = capsysbinary.readouterr().out.decode()
    assert f"split {shown}" in table
    assert "\x1b" not in table


def test_without_the_extra_there_is_no_progress_and_plots_say_what_they_need(
    annotated_set, tmp_path, monkeypatch, capsys
):
    root = str(annotated_set())
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["check", root]) == 0
    monkeypatch.delitem(sys.modules, "itg_data.sets.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["stats", root, "--plots", str(tmp_path / "plots")]) == 2
    assert "plots need itg-data[annotate]" in capsys.readouterr().err


def test_a_published_file_becomes_a_set_to_train_on(annotated_set, tmp_path, capsys):
    source = annotated_set() / "video_itg_data.json"
    entries = json.loads(source.read_text())
    source.write_text(json.dumps([*entries, {"id": 1}]))
    out = tmp_path / "imported" / "set"
    assert main(["import", str(source), "--out", str(out), "--split", "train"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"num_records": len(entries), "num_bad": 1}
    assert f"record {len(entries)}: frame_num must be" in said.err
    assert {r.split for r in read_jsonl(out / "records.jsonl", GroundingRecord)} == {"train"}


def write_published_file(path: Path, *questions: str) -> str:
    fields = {"video": "a.mp4", "answer": "x", "frame_num": [1], "clip_num": [0]}
    path.write_text(
        json.dumps([{"id": i, "question": q} | fields for i, q in enumerate(questions)])
    )
    return str(path)


def test_half_a_character_costs_an_import_one_record(tmp_path, capsys):
    source = write_published_file(tmp_path / "x.json", "One?", "half \ud800", "Two?")
    assert main(["import", source, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"num_records": 2, "num_bad": 1}
    assert said.err == (
        f"itg-data import: {source}: record 1: question holds half a character at place 5\n"
    )
    found = read_jsonl(tmp_path / "out" / "records.jsonl", GroundingRecord)
    assert [record.question for record in found] == ["One?", "Two?"]


def test_an_import_that_reads_nothing_fails_and_writes_nothing(tmp_path, capsys):
    source, out = write_published_file(tmp_path / "x.json", " ", "\ud800"), tmp_path / "out"
    assert main(["import", source, "--out", str(out)]) == 2
    *named, last = capsys.readouterr().err.splitlines()
    assert len(named) == 2
    assert last == f"itg-data: {source}: none of its 2 records can be read"
    assert not out.exists()
    assert main(["import", source, "--out", str(out), "--split", "\udcff"]) == 2
    assert "--split holds half a character" in capsys.readouterr().err


def test_an_import_replaces_records_only_if_told_to(tmp_path, capsys):
    source, out = write_published_file(tmp_path / "x.json", "One?"), tmp_path / "out"
    out.mkdir()
    (out / "records.jsonl").write_text("precious\n")
    assert main(["import", source, "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"itg-data: --out {out} holds a records.jsonl already; choose another folder, or replace "
        "it with --overwrite\n"
    )
    assert (out / "records.jsonl").read_text() == "precious\n"
    assert main(["import", source, "--out", str(out), "--overwrite"]) == 0
    assert "One?" in (out / "records.jsonl").read_text()


def test_an_import_never_replaces_what_follows_from_annotations(annotated_set, capsys):
    root = annotated_set()
    before = (root / "records.jsonl").read_bytes()
    arguments = ["import", str(root / "video_itg_data.json"), "--out", str(root), "--overwrite"]
    assert main(arguments) == 2
    assert "is an annotated set, whose records follow from" in capsys.readouterr().err
    assert (root / "records.jsonl").read_bytes() == before


def test_the_commands_start_without_what_they_do_not_need():
    code = (
        "import sys, itg_data.cli; "
        "print({'matplotlib', 'pyarrow', 'rich', 'torch'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"
