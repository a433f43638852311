import contextlib
import re
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from itg_data.jsonl import read_jsonl
from itg_data.records import FrameSelection
from itg_model import FrameGrounder
from transformers import AutoProcessor

EXAMPLES = Path(__file__).parent
QUESTION = "What is red?"
SECONDS_TO_START = 600
SCRIPTS = sorted(
    path for path in EXAMPLES.glob("*.py") if path.stem not in ("conftest", "test_examples")
)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as a script, in this process, and gives what it prints."""

    def run(example: str, *arguments: object, exits: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", [example, *map(str, arguments)])
        with pytest.raises(SystemExit) if exits else contextlib.nullcontext() as stopped:
            runpy.run_path(str(EXAMPLES / example), run_name="__main__")
        assert stopped is None or stopped.value.code == exits
        return capsys.readouterr().out

    return run


@pytest.fixture
def selection(video, grounder_dir) -> FrameSelection:
    return FrameGrounder.from_pretrained(grounder_dir, "cpu").select(video, QUESTION, 4)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url).close()
    except urllib.error.URLError:
        return False
    return True


@pytest.fixture
def server(vlm_dir, tmp_path) -> Iterator[str]:
    """An OpenAI-compatible server of a tiny Video LLM: transformers' own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(vlm_dir), "--port", str(port), "--host", "127.0.0.1"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen([*command, "--device", "cpu"], stdout=log, stderr=log) as process,
    ):
        try:
            deadline_s = time.monotonic() + SECONDS_TO_START
            while not answers(f"{url}/health"):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline_s, (tmp_path / "log").read_text()
                time.sleep(0.1)
            yield f"{url}/v1"
        finally:
            process.terminate()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_example_is_short(path):
    assert len(path.read_text().splitlines()) < 60


def test_a_video_llm_is_told_the_true_times_and_answers(
    run, selection, video, grounder_dir, vlm_dir
):
    example = runpy.run_path(str(EXAMPLES / "transformers_video_llm.py"))
    processor = AutoProcessor.from_pretrained(vlm_dir)
    inputs = example["to_inputs"](processor, selection)
    prompt = processor.decode(inputs["input_ids"][0])
    told = [float(time_s) for time_s in re.findall(r"<([\d.]+) seconds>", prompt)]
    assert told == [round(frame.time_s, 1) for frame in selection.selected]
    assert prompt.endswith(QUESTION)
    # pairs of frames are merged, and both of a pair are the same frame
    patches = inputs["pixel_values_videos"].reshape(-1, 3, 2, 16, 16)
    assert (patches[:, :, 0] == patches[:, :, 1]).all()
    options = ["--vlm", vlm_dir, "--top-k", 4]
    assert run("transformers_video_llm.py", video, QUESTION, grounder_dir, *options)


@pytest.mark.slow
def test_an_openai_compatible_server_answers(
    run, server, video, grounder_dir, vlm_dir, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    options = ["--url", server, "--vlm", vlm_dir, "--top-k", 4]
    assert run("openai_server.py", video, QUESTION, grounder_dir, *options)


def test_a_server_is_sent_each_time_before_its_frame(selection):
    content = runpy.run_path(str(EXAMPLES / "openai_server.py"))["to_content"](selection)
    assert [part["type"] for part in content] == ["text", "image_url"] * 4 + ["text"]
    times = [part["text"] for part in content[:-1:2]]
    assert times == [f"[{frame.time_s:.1f} s]" for frame in selection.selected]


def test_a_directory_becomes_a_jsonl_and_goes_on_where_it_was(run, videos, grounder_dir, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in videos:
        (folder / path.name).symlink_to(path)
    (folder / "broken.mp4").write_text("no video")
    output = tmp_path / "out.jsonl"
    arguments = [folder, QUESTION, grounder_dir, output, "--top-k", 3]
    run("directory_to_jsonl.py", *arguments, exits=1)
    whole = output.read_bytes()
    records = list(read_jsonl(output, FrameSelection))
    assert [len(record.selected) for record in records] == [3, 3]
    # as a kill while the second line was written would leave it
    output.write_bytes(whole[:-9])
    run("directory_to_jsonl.py", *arguments, exits=1)
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({1: "Who wins?"}, f"holds answers to ('{QUESTION}', "),
        ({2: "itg-tiny"}, "not to ('What is red?', 'itg-tiny', 'top-k', 3)"),
        ({5: 2}, "'top-k', 3), not to "),
    ],
)
def test_answers_to_something_else_are_refused_and_kept(
    change, said, run, video, grounder_dir, tmp_path
):
    output = tmp_path / "out.jsonl"
    arguments = dict(enumerate([video.parent, QUESTION, grounder_dir, output, "--top-k", 3]))
    with pytest.raises(SystemExit, match="0"):
        run("directory_to_jsonl.py", *arguments.values())
    # a last line without its end is kept as well, where it may be another's
    answers = output.read_bytes()[:-1]
    output.write_bytes(answers)
    with pytest.raises(SystemExit) as refused:
        run("directory_to_jsonl.py", *(arguments | change).values())
    assert str(refused.value).startswith(f"{output}: holds answers to (")
    assert said in str(refused.value)
    assert str(refused.value).endswith("; name another file")
    assert output.read_bytes() == answers


def test_a_file_of_something_else_is_refused_and_kept(run, video, grounder_dir, tmp_path):
    output = tmp_path / "notes.txt"
    output.write_text("precious\nnotes")
    with pytest.raises(SystemExit, match=r"notes\.txt: .*; name another file"):
        run("directory_to_jsonl.py", video.parent, QUESTION, grounder_dir, output)
    assert output.read_text() == "precious\nnotes"


def test_an_own_scorer_meets_the_policies(run, video, clip_dir):
    lines = run("own_scorer.py", video, QUESTION, "--clip", clip_dir, "--top-k", 3).splitlines()
    scores = [float(line.split()[-1]) for line in lines]
    assert len(scores) == 3
    assert all(-1 <= score <= 1 for score in scores)


def test_an_own_policy_takes_what_lies_around_the_best(run, video, grounder_dir):
    choose = runpy.run_path(str(EXAMPLES / "own_policy.py"))["around_the_best"]
    scores, times_s = np.array([0.1, 0.9, 0.2, 0.3, 0.8, 0.1]), np.arange(6.0)
    assert choose(scores, times_s, 4, 0, 1) == [1, 2, 4, 5]
    assert choose(scores, times_s, 3, 0, 1) == [1, 2]
    lines = run("own_policy.py", video, QUESTION, grounder_dir, "--top-k", 8).splitlines()
    assert 4 <= len(lines) <= 8
