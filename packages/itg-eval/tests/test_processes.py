"""Runs of real processes: one that is killed, and two under torchrun."""

import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from itg_data.jsonl import read_jsonl, write_jsonl
from itg_eval.cli import main
from itg_eval.records import DocumentScores

# The real command, which stands still once it has answered two questions.
HALTING = """
import sys, time
from itg_model.grounder import FrameGrounder
score, answered = FrameGrounder.score, []
def score_or_halt(self, video, question):
    if len(answered) == 2:
        time.sleep(3600)
    answered.append(question)
    return score(self, video, question)
FrameGrounder.score = score_or_halt
from itg_eval.cli import main
sys.exit(main(sys.argv[1:]))
"""
SECONDS_AT_MOST = 600


def wait_for_lines(path: Path, number: int) -> None:
    deadline = time.monotonic() + SECONDS_AT_MOST
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        assert time.monotonic() < deadline, f"{path.name} has no {number} lines"
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_asks_nothing_twice_that_was_answered(
    documents, documents_file, grounder_dir, tmp_path
):
    run = tmp_path / "run"
    shard = run / "shards" / "scores.rank0of1.jsonl"
    arguments = ["score", "--documents", str(documents_file), "--model", str(grounder_dir)]
    arguments += ["--output", str(run), "--device", "cpu"]
    with subprocess.Popen([sys.executable, "-c", HALTING, *arguments]) as process:
        try:
            wait_for_lines(shard, 2)
        finally:
            process.send_signal(signal.SIGKILL)
    answered = shard.read_bytes()
    answered = answered[: answered.rfind(b"\n") + 1]
    num_answered = answered.count(b"\n")
    assert num_answered == 2
    assert not (run / "scores.jsonl").exists()
    with shard.open("ab") as file:
        file.write(b'{"schema_version": 1, "task": "to')  # torn, as a kill within a write leaves it
    assert main(arguments) == 0
    # what was answered stands as it was, and every question is answered once
    assert shard.read_bytes().startswith(answered)
    keys = Counter(row.key for row in read_jsonl(shard, DocumentScores))
    assert keys == Counter(document.key for document in documents)
    rows = list(read_jsonl(run / "scores.jsonl", DocumentScores))
    assert [row.key for row in rows] == [document.key for document in documents]


@pytest.mark.slow
def test_two_processes_share_the_videos_and_a_bad_one_stops_neither(
    documents, documents_file, grounder_dir, tmp_path
):
    # the fourth video, so the second of the second process
    write_jsonl(documents_file, [*documents[:8], replace(documents[8], video="none.mp4")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "-m", "itg_eval", "score", "--device", "cpu"]
    command += ["--documents", str(documents_file), "--model", str(grounder_dir)]
    run = subprocess.run(
        [*command, "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=SECONDS_AT_MOST,
        check=False,
    )
    rows = list(read_jsonl(tmp_path / "run" / "scores.jsonl", DocumentScores))
    assert [row.doc_id for row in rows] == list(range(8)), run.stderr
    assert "none.mp4: no such file" in run.stderr
    shards = [
        [row.scored.video for row in read_jsonl(path, DocumentScores)]
        for path in sorted((tmp_path / "run" / "shards").glob("scores.*"))
    ]
    assert [set(videos) for videos in shards] == [
        {documents[0].video, documents[2].video},
        {documents[1].video},
    ]
    assert sum(map(len, shards)) == 8
    # the last process says by its exit code that not all was scored
    assert run.returncode == 1
