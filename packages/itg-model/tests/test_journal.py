"""The file of results: what is continued, and what is left alone."""

import errno
import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
from itg_data.errors import in_one_line
from itg_data.records import FrameSelection, SelectedFrame, to_json
from itg_model.journal import Journal, Share
from itg_model.many import FailedSelection

ALONE = Share()


def make_selection(video: str, question: str = "where") -> FrameSelection:
    return FrameSelection(
        video=video,
        question=question,
        model="tiny",
        sampling="train-1hz-max64",
        policy="top-k",
        num_sampled=1,
        selected=(SelectedFrame(source_idx=0, time_s=0.0, score=0.5, rank=0),),
        scores=(0.5,),
        times_s=(0.0,),
    )


def accept(_: FrameSelection) -> None:
    """Takes results of any model and options."""


def write_results(path: Path, *results: FrameSelection | FailedSelection) -> bytes:
    journal = Journal(path, ALONE, accept)
    for result in results:
        journal.write(result)
    journal.close()
    return path.read_bytes()


def read_done(path: Path, share: Share = ALONE) -> set[str]:
    """The videos that a run with this file does not ask again."""
    journal = Journal(path, share, accept)
    journal.close()
    return {video for video, _ in journal.done}


FOREIGN = {
    "json without a newline": json.dumps({"thesis": [1, 2, 3]}),
    "text without a newline": "where is it",
    "an error of others": '{"error": "disk full", "job": 7}\n{"error": null}\n',
    "an error of others without a newline": '{"error": null}',
    "a failure of another schema": '{"schema_version": 9, "video": "a", "question": "b", '
    '"error": "c"}\n',
    "a record of others": json.dumps(
        {"schema_version": 1, "video": "a.mp4", "question": "where", "spans": []}
    ),
    "blank lines": "\n\n",
    "old newlines": "a\rb\r",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_others_is_named_and_left_alone(content, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content.encode())
    with pytest.raises(ValueError, match=r"out\.jsonl:1: is no result.*; name another file, or"):
        Journal(path, ALONE, accept)
    assert path.read_bytes() == content.encode()


def test_a_line_of_ours_is_dropped_wherever_it_was_cut_off(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = write_results(path, make_selection("a.mp4"))
    line = json.dumps(to_json(make_selection("é.mp4")), ensure_ascii=False).encode()
    for end in range(1, len(line)):
        path.write_bytes(whole + line[:end])
        assert read_done(path) == {"a.mp4"}
        assert path.read_bytes() == whole


def test_a_line_that_lost_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = write_results(path, make_selection("a.mp4"), make_selection("b.mp4"))
    path.write_bytes(whole[:-1])
    assert read_done(path) == {"a.mp4", "b.mp4"}
    assert path.read_bytes() == whole


def test_a_line_broken_amid_others_is_named_and_stays(tmp_path):
    path = tmp_path / "out.jsonl"
    whole = write_results(path, make_selection("a.mp4"), make_selection("b.mp4"))
    broken = whole[:60] + b"\n" + whole
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"out\.jsonl:1: is no result"):
        Journal(path, ALONE, accept)
    assert path.read_bytes() == broken


def test_failures_are_asked_again(tmp_path):
    path = tmp_path / "out.jsonl"
    failed = FailedSelection(video="b.mp4", question="where", error="no such file")
    write_results(path, make_selection("a.mp4"), failed)
    assert read_done(path) == {"a.mp4"}
    assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("name", ["run[1].jsonl", "run*.jsonl", "run.v2"])
def test_the_files_of_ranks_are_found_whatever_the_name(name, tmp_path):
    path = tmp_path / name
    for rank in (0, 11):
        own = Share(rank, 12).path_of(path)
        write_results(own, make_selection(f"{rank}.mp4"))
    assert read_done(path) == {"0.mp4", "11.mp4"}
    assert read_done(path, Share(11, 12)) == {"0.mp4", "11.mp4"}


@pytest.mark.parametrize("name", ["out.ranking.jsonl", "out.rank.jsonl", "out.rank1.old.jsonl"])
def test_a_bystander_is_no_file_of_a_rank(name, tmp_path):
    (tmp_path / name).write_text("a thesis\n")
    assert read_done(tmp_path / "out.jsonl") == set()


# In a process of its own: a Journal that waits for what it should not read would never return.
WRITES_ONE = """
import sys
from pathlib import Path
from itg_model.journal import Journal, Share
from itg_model.many import FailedSelection
journal = Journal(Path(sys.argv[1]), Share(), lambda found: None)
journal.write(FailedSelection(video="a.mp4", question="where", error="none"))
journal.close()
"""


def test_a_pipe_is_written_to_and_not_read():
    command = [sys.executable, "-c", WRITES_ONE, "/dev/stdout"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600)
    assert json.loads(done.stdout)["error"] == "none"


def test_several_processes_do_not_share_a_pipe():
    with pytest.raises(ValueError, match="/dev/null: is no file, beside which each process"):
        Journal(Path("/dev/null"), Share(1, 2), accept)


def test_a_full_disk_is_named():
    journal = Journal(Path("/dev/full"), ALONE, accept)
    with pytest.raises(OSError, match="No space left") as caught:
        journal.write(make_selection("a.mp4"))
    assert in_one_line(caught.value) == "/dev/full: No space left on device"
    with pytest.raises(OSError, match="No space left"):
        journal.close()


def test_a_full_disk_behind_stdout_is_named():
    command = [sys.executable, "-c", WRITES_ONE.replace("Path(sys.argv[1])", "None")]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=600, check=False
        )
    assert "No space left on device: 'stdout'" in done.stderr


HOLDS_ON = """
import sys
from pathlib import Path
from itg_model.journal import Journal, Share
journal = Journal(Path(sys.argv[1]), Share(), lambda found: None)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_file_that_another_process_writes_to_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    content = write_results(path, make_selection("a.mp4"))
    command = [sys.executable, "-c", HOLDS_ON, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match=r"out\.jsonl: another process writes to it"):
            Journal(path, ALONE, accept)
        other.stdin.close()
    assert read_done(path) == {"a.mp4"}
    assert path.read_bytes() == content


@pytest.mark.parametrize("comes_anew", [True, False])
def test_a_file_replaced_before_it_was_locked_is_opened_anew(comes_anew, tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    content = write_results(path, make_selection("a.mp4"))
    lock = fcntl.flock

    def replace_once(file, how):
        monkeypatch.setattr(fcntl, "flock", lock)
        path.unlink()
        if comes_anew:
            path.write_bytes(content)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", replace_once)
    after = write_results(path, make_selection("b.mp4"))
    assert after.endswith(b"\n")
    assert after.count(b"\n") == 1 + comes_anew
    assert b'"b.mp4"' in after


def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available") as caught:
        Journal(tmp_path / "out.jsonl", ALONE, accept)
    assert in_one_line(caught.value) == f"{tmp_path / 'out.jsonl'}: No locks available"
