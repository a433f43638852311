import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import pytest
import torch
from itg_data import progress
from itg_data.records import FrameSelection, from_json
from itg_data.video import VideoReader
from itg_model import FrameGrounder
from itg_model import frames as frames_module
from itg_model.cli import main
from itg_model.many import FailedSelection
from itg_model.questions import read_questions


@pytest.fixture
def grounder(tiny_model, tokenizer) -> FrameGrounder:
    return FrameGrounder(tiny_model, tokenizer, "tiny", frame_chunk=4)


@pytest.fixture
def folder(video, tmp_path):
    """Two copies of the video, a broken one between them, and a file that is none."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "c.MP4"):
        (videos / name).write_bytes(video.read_bytes())
    (videos / "b.mp4").write_bytes(b"no video")
    (videos / "notes.txt").write_text("no question")
    return videos


@pytest.fixture
def arguments(folder, checkpoint_dir) -> list[str]:
    return [str(folder), "--model", str(checkpoint_dir), "--device", "cpu", "--top-k", "3"]


def test_many_questions_get_what_each_would_get_alone(grounder, folder):
    asked = [
        (folder / "a.mp4", ["where is it", "when does it move"]),
        (folder / "c.MP4", "where is it"),
        (folder / "a.mp4", "where is it"),
    ]
    results = list(grounder.select_many(asked, top_k=3))
    alone = [
        grounder.select(video, question, top_k=3)
        for video, questions in asked
        for question in ([questions] if isinstance(questions, str) else questions)
    ]
    assert results == alone


def test_neighbours_about_one_video_share_its_decoding(grounder, folder, monkeypatch):
    opened, whole = [], frames_module.open_video
    monkeypatch.setattr(
        frames_module, "open_video", lambda path, **kw: (opened.append(path), whole(path, **kw))[1]
    )
    asked = [(folder / "a.mp4", "where"), (folder / "a.mp4", "when"), (folder / "c.MP4", "where")]
    assert len(list(grounder.select_many(asked))) == 3
    assert [path.rsplit("/")[-1] for path in opened] == ["a.mp4", "c.MP4"]


def test_a_bad_video_or_question_is_a_result_and_the_rest_goes_on(grounder, folder):
    asked = [
        (folder / "b.mp4", ["where", "when"]),
        (folder / "no-such.mp4", "where"),
        (folder / "a.mp4", ["where", " ", "when"]),
    ]
    results = list(grounder.select_many(asked))
    assert [type(r) is FailedSelection for r in results] == [True] * 3 + [False, True, False]
    assert [r.question for r in results] == ["where", "when", "where", "where", " ", "when"]
    assert "b.mp4" in results[0].error
    assert "question must not be blank" in results[4].error


def test_a_bad_request_fails_before_any_video_is_opened(grounder):
    with pytest.raises(ValueError, match="k must be >= 1"):
        grounder.select_many([("no-such.mp4", "where")], top_k=0)


def test_the_next_video_is_decoded_while_one_is_scored(grounder, folder, monkeypatch):
    events, stream, score = [], VideoReader.stream, grounder.score
    started = threading.Semaphore(0)

    def watch(self, *args, **options):
        events.append("decode")
        started.release()
        return stream(self, *args, **options)

    def slow(*args):
        # returns only once the next video, if there is one, is being decoded
        if "score" not in events:
            assert started.acquire(timeout=600)
            assert started.acquire(timeout=600)
        events.append("score")
        return score(*args)

    monkeypatch.setattr(VideoReader, "stream", watch)
    monkeypatch.setattr(grounder, "score", slow)
    list(grounder.select_many([(folder / "a.mp4", "where"), (folder / "c.MP4", "where")]))
    assert events == ["decode", "decode", "score", "score"]


def test_questions_are_drawn_as_needed_and_a_stop_leaves_nothing_open(grounder, folder):
    drawn = []

    def asked():
        for i in range(1000):
            drawn.append(i)
            yield folder / ("a.mp4" if i % 2 else "c.MP4"), "where"

    before = threading.enumerate()
    results = grounder.select_many(asked())
    next(results)
    results.close()
    assert len(drawn) <= 4
    assert set(threading.enumerate()) <= set(before)


@pytest.mark.parametrize(
    "entry",
    ["a.mp4", "ab", ("a.mp4",), ("a.mp4", None), ("a.mp4", 5), ("a.mp4", b"where"), (5, "where")],
    ids=str,
)
def test_what_is_no_pair_of_video_and_question_is_named(entry, grounder):
    with pytest.raises(ValueError, match=r"asked must hold pairs of a video and a question"):
        next(grounder.select_many([entry]))


def test_an_interrupt_while_a_video_is_opened_leaves_nothing_open(grounder, folder, monkeypatch):
    interrupted, opened, result = threading.Event(), [], Future.result

    def open_late(video, sampling):
        assert interrupted.wait(timeout=600)
        opened.append(FrameGrounder.open(grounder, video, sampling))
        return opened[0]

    def interrupt(future, timeout=None):
        monkeypatch.setattr(Future, "result", result)
        interrupted.set()
        raise KeyboardInterrupt

    before = threading.enumerate()
    results = grounder.select_many([(folder / "a.mp4", "where")])
    monkeypatch.setattr(grounder, "open", open_late)
    monkeypatch.setattr(Future, "result", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert len(opened) == 1
    assert opened[0]._reader.source._fd == -1
    assert set(threading.enumerate()) <= set(before)


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_gives_a_line_to_every_video(arguments, capsys):
    assert main([arguments[0], "where is it", *arguments[1:]]) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["video"].rsplit("/")[-1] for row in rows] == ["a.mp4", "b.mp4", "c.MP4"]
    assert set(rows[1]) == {"schema_version", "video", "question", "error"}
    assert from_json(FrameSelection, rows[0]).num_sampled == 10
    assert "answered 2 of 3 questions; 1 failed" in captured.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.txt", "where is it\n\n  when does it move \n"),
        ("q.jsonl", '{"question": "where is it", "id": 3}\n{"question": "when does it move"}\n'),
        ("q.csv", "id,question\n1,where is it\n2,when does it move\n"),
        ("q.csv", "\ufeffquestion,video\nwhere is it,\nwhen does it move,\n"),
    ],
)
def test_questions_without_a_video_are_asked_of_every_one(name, text, folder, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    asked = read_questions(tmp_path / name, folder)
    assert [v.name for v, _ in asked] == ["a.mp4"] * 2 + ["b.mp4"] * 2 + ["c.MP4"] * 2
    assert [q for _, q in asked] == ["where is it", "when does it move"] * 3
    assert len(read_questions(tmp_path / name, folder / "a.mp4")) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.txt", "{}\r\n{}\r\n"),
        ("q.jsonl", '{{"question": "{}"}}\n{{"question": "{}"}}'),
        ("q.csv", "question,id\r\n{},1\r\n{},2\r\n"),
    ],
)
@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_a_question_may_hold_what_unicode_takes_for_the_end_of_a_line(
    separator, name, text, folder, tmp_path
):
    questions = [f"where{separator}is it", "when"]
    (tmp_path / name).write_bytes(text.format(*questions).encode())
    asked = read_questions(tmp_path / name, folder / "a.mp4")
    assert [question for _, question in asked] == questions


def test_questions_name_videos_beside_them_or_in_the_folder(folder, tmp_path):
    path = tmp_path / "q.jsonl"
    rows = [("c.MP4", "where"), ("a.mp4", "where"), ("c.MP4", "when"), ("c.MP4", "where")]
    path.write_text("".join(json.dumps({"video": v, "question": q}) + "\n" for v, q in rows))
    pairs = [("c.MP4", "where"), ("c.MP4", "when"), ("a.mp4", "where")]
    assert read_questions(path, folder) == [(folder / v, q) for v, q in pairs]
    assert read_questions(path, None) == [(tmp_path / v, q) for v, q in pairs]


def test_a_link_in_a_folder_that_leads_nowhere_is_told(arguments, folder, capsys):
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "more.mp4").symlink_to(folder)
    assert main([arguments[0], "where is it", *arguments[1:]]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {row["video"].rsplit("/")[-1]: row.get("error", "") for row in rows}
    assert list(told) == ["a.mp4", "b.mp4", "c.MP4", "gone.mp4", "loop.mp4"]
    assert told["gone.mp4"].endswith("gone.mp4: no such file")
    assert "loop.mp4: Too many levels of symbolic links" in told["loop.mp4"]


def test_a_folder_may_hold_all_the_videos_that_are_named_in_folders_of_its_own(folder, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"video": "videos/a.mp4", "question": "where"}\n')
    assert read_questions(path, tmp_path) == [(folder / "a.mp4", "where")]
    path.write_text(path.read_text() + '{"question": "when"}\n')
    with pytest.raises(ValueError, match="holds no video"):
        read_questions(path, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.txt", "", "holds no question"),
        ("q.txt", "where", "q.txt:1: names no video; give one, or a folder, as VIDEO"),
        (
            "q.jsonl",
            '{"video": "a.mp4", "question": "where"}\n[]\n',
            "q.jsonl:2: not a JSON object",
        ),
        ("q.jsonl", '{"video": "a.mp4"}\n', "q.jsonl:1: question is missing or blank"),
        ("q.jsonl", '{"video": "a.mp4", "question": 3}\n', "must be text"),
        ("q.csv", "where,a.mp4\n", "q.csv:1: the first line must name the columns"),
        ("q.csv", "video,question\na.mp4\n", "q.csv:2: question is missing or blank"),
        ("q.csv", 'question,"' + 200_000 * "x", "q.csv:1: not CSV: field larger than field limit"),
    ],
)
def test_a_bad_file_of_questions_exits_2_with_one_line(name, text, message, capsys, tmp_path):
    (tmp_path / name).write_text(text)
    assert main(["--questions", str(tmp_path / name), "--model", "x", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["where", "--questions", "q.txt"], "QUESTION and --questions exclude each other"),
        ([], "give VIDEO and QUESTION, or --questions FILE"),
        (["where", "--report", "out.html"], "--report is for one question about one video"),
        (["where", "--decode", "nvdec"], "decode nvdec needs the model on an NVIDIA GPU"),
        (["where", "--precision", "fp8"], "precision fp8 needs an NVIDIA GPU"),
        (["--questions", "no-such.txt"], "--questions no-such.txt: No such file"),
    ],
)
def test_a_senseless_combination_exits_2_with_one_line(change, message, arguments, capsys):
    assert main([arguments[0], *change, *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_second_run_asks_only_what_is_left(arguments, folder, capsys, tmp_path):
    out = tmp_path / "out.jsonl"
    command = [arguments[0], "where is it", *arguments[1:], "--json", str(out)]
    assert main(command) == 1
    first = lines_of(out)
    # the broken video is whole now, and the last line was cut off
    (folder / "b.mp4").write_bytes((folder / "a.mp4").read_bytes())
    out.write_bytes(out.read_bytes()[:-20])
    assert main(command) == 0
    rows = lines_of(out)
    assert [row["video"].rsplit("/")[-1] for row in rows] == ["a.mp4", "b.mp4", "c.MP4"]
    assert rows[0] == first[0]
    assert "answered 2 of 3 questions; 1 were answered before" in capsys.readouterr().err
    assert main(command) == 0
    assert lines_of(out) == rows


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--top-k", "4"], "holds results with top_k 3, but 4 is asked for"),
        (["--policy", "uniform"], "holds results with policy top-k, but uniform is asked for"),
        (["--rate-hz", "2"], "holds results with sampling train-1hz-max64, but train-2hz-max64"),
        (["--max-pooled-side", "1"], "holds results with model"),
        (["--dtype", "bfloat16"], "+bfloat16 is asked for"),
    ],
)
def test_results_of_other_options_are_not_continued(option, message, arguments, capsys, tmp_path):
    out = tmp_path / "out.jsonl"
    command = [arguments[0], "where is it", *arguments[1:], "--json", str(out)]
    main(command)
    before = out.read_bytes()
    assert main([*command, *option]) == 2
    assert message in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_file_that_holds_something_else_is_left_alone(arguments, capsys, tmp_path):
    out = tmp_path / "thesis.jsonl"
    out.write_text("a thesis\n")
    assert main([arguments[0], "where", *arguments[1:], "--json", str(out)]) == 2
    assert "thesis.jsonl:1: " in capsys.readouterr().err
    assert out.read_text() == "a thesis\n"


def test_processes_deal_out_the_videos_and_know_what_others_did(
    arguments, folder, capsys, tmp_path, monkeypatch
):
    out = tmp_path / "out.jsonl"
    command = [arguments[0], "where", *arguments[1:], "--json", str(out)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        main(command)
    videos = [[row["video"] for row in lines_of(tmp_path / f"out.rank{r}.jsonl")] for r in "01"]
    assert videos == [[str(folder / "a.mp4"), str(folder / "c.MP4")], [str(folder / "b.mp4")]]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    main(command)
    assert [row["video"] for row in lines_of(out)] == [str(folder / "b.mp4")]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command[:-2]) == 2
    assert "several processes need --json FILE" in capsys.readouterr().err


def test_processes_without_a_gpu_run_on_the_cpu(arguments, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    command = [arguments[0], "where", "--model", arguments[2], "--device", "auto"]
    for local_rank in ("0", None):
        if local_rank is None:
            monkeypatch.delenv("LOCAL_RANK")
        else:
            monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert main([*command, "--json", str(tmp_path / f"{local_rank}.jsonl")]) == 0
        assert len(lines_of(tmp_path / f"{local_rank}.rank0.jsonl")) == 2


def test_each_process_takes_the_gpu_of_its_place_on_the_machine(
    arguments, capsys, tmp_path, monkeypatch
):
    taken = []

    def load(request, device):
        taken.append(device)
        raise ValueError("loaded")

    monkeypatch.setattr("itg_model.cli.load_grounder", load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    command = [arguments[0], "where", "--model", arguments[2], "--json", str(tmp_path / "o.jsonl")]
    for device in ("auto", "cuda", "cuda:0", "cpu"):
        assert main([*command, "--device", device]) == 2
    assert taken == ["cuda:1", "cuda:1", None, None]
    monkeypatch.delenv("LOCAL_RANK")
    capsys.readouterr()
    assert main([*command, "--device", "auto"]) == 2
    assert "several processes need LOCAL_RANK in the environment" in capsys.readouterr().err
    assert main([*command, "--device", "cuda:1"]) == 2
    assert taken[4:] == [None]


@pytest.mark.parametrize(("rank", "world_size"), [("3", None), ("2", "2"), ("x", "2"), ("-1", "2")])
def test_a_rank_that_gets_no_share_is_refused(
    rank, world_size, arguments, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    assert main([arguments[0], "where", *arguments[1:], "--json", str(tmp_path / "o.jsonl")]) == 2
    error = capsys.readouterr().err
    assert f"RANK the smaller, got RANK={rank} and WORLD_SIZE={world_size or 1}" in error
    assert error.count("\n") == 1


# The real command, whose first process takes its time once the second has met a bad video.
LINGERING = """
import os, sys, time
from pathlib import Path
from itg_model.grounder import FrameGrounder
score, others = FrameGrounder.score, Path(sys.argv[-1]).with_name("out.rank1.jsonl")
def linger(self, *args):
    while not others.exists() or others.stat().st_size == 0:
        time.sleep(0.1)
    time.sleep(4)
    return score(self, *args)
if os.environ["RANK"] == "0":
    FrameGrounder.score = linger
from itg_model.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_bad_video_of_one_process_does_not_end_the_others(arguments, folder, tmp_path):
    script, out = tmp_path / "lingering.py", tmp_path / "out.jsonl"
    script.write_text(LINGERING)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, script, arguments[0], "where", *arguments[1:], "--json", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert len(lines_of(tmp_path / "out.rank0.jsonl")) == 2
    assert "answered 2 of 2 questions" in done.stderr
    assert "error" in lines_of(tmp_path / "out.rank1.jsonl")[0]


# The real command, which stands still once it has answered some questions.
HALTING = """
import sys, time
from itg_model.grounder import FrameGrounder
score, answered = FrameGrounder.score, []
def score_or_halt(self, *args):
    if len(answered) == 20:
        time.sleep(3600)
    answered.append(1)
    return score(self, *args)
FrameGrounder.score = score_or_halt
from itg_model.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_a_terminal_there_are_lines_of_progress(arguments, folder, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    (folder / "b.mp4").unlink()
    (folder / "c.MP4").rename(folder / "[bold]\n.mp4")
    assert main([arguments[0], "where", *arguments[1:]]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == r"itg-select: choosing frames: 1 of 2 questions, [bold]\n.mp4"
    assert said[1].startswith("itg-select: choosing frames: 2 of 2 questions, a.mp4")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(arguments, folder, tmp_path):
    questions = tmp_path / "q.txt"
    questions.write_text("".join(f"where is square {i}\n" for i in range(30)))
    (folder / "b.mp4").unlink()
    out = tmp_path / "out.jsonl"
    command = [*arguments, "--questions", str(questions), "--json", str(out)]
    halting = [sys.executable, "-c", HALTING, *command]
    with subprocess.Popen(halting, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 600
        while process.poll() is None and (not out.exists() or out.stat().st_size < 5000):
            assert time.monotonic() < deadline, process.kill()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    first = out.read_bytes()
    assert main(command) == 0
    assert out.read_bytes().startswith(first[: first.rindex(b"\n") + 1])
    rows = lines_of(out)
    assert len({(row["video"], row["question"]) for row in rows}) == len(rows) == 60
