import json
import os
import re
import subprocess
import sys
from itertools import pairwise

import pytest
from itg_model import cli
from itg_model.cli import main


@pytest.fixture
def arguments(checkpoint_dir, video) -> list[str]:
    return [str(video), "where is it", "--model", str(checkpoint_dir), "--device", "cpu"]


def test_stdout_holds_the_selection_as_json_and_nothing_else(arguments, capsys):
    assert main([*arguments, "--top-k", "3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["video"] == arguments[0]
    assert result["question"] == "where is it"
    assert result["model"] == arguments[3]
    assert (result["policy"], result["sampling"]) == ("top-k", "train-1hz-max64")
    assert result["num_sampled"] == len(result["scores"]) == len(result["times_s"]) == 10
    assert len(result["selected"]) == 3
    for frame in result["selected"]:
        assert set(frame) == {"source_idx", "time_s", "score", "rank"}
        assert frame["score"] == result["scores"][frame["source_idx"] // 4]


def test_the_result_goes_to_a_file_where_one_is_named(arguments, capsys, tmp_path):
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "out.json").read_text())["num_sampled"] == 10


def test_sampling_and_policy_are_options(arguments, capsys):
    options = ["--rate-hz", "4", "--max-frames", "8", "--sampling-rule", "lmms-eval"]
    assert main([*arguments, *options, "--policy", "uniform", "--top-k", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_sampled"] == 8
    assert (result["policy"], result["sampling"]) == ("uniform", "lmms-eval-4hz-max8")


def test_chosen_frames_are_saved_as_pictures(arguments, capsys, tmp_path):
    options = ["--save-frames", str(tmp_path / "frames"), "--frame-format", "png", "--top-k", "2"]
    assert main([*arguments, *options]) == 0
    captured = capsys.readouterr()
    selected = json.loads(captured.out)["selected"]
    names = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert [int(name.split("_")[1]) for name in names] == [f["source_idx"] for f in selected]
    wanted = f"itg-select: chose 2 of 10 frames looked at; pictures in {tmp_path / 'frames'}\n"
    assert captured.err == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "no-such.mp4"}, "no-such.mp4: no such file"),
        ({0: "/dev"}, "/dev: holds no video (.3gp, .avi"),
        ({1: " "}, "the question must not be blank"),
        ({1: "where \udcff"}, "the question must be text in UTF-8"),
        ({3: "/no/such/checkpoint"}, "/no/such/checkpoint: no such directory"),
        ({3: "someone/grounder"}, "someone/grounder: no such directory"),
        ({5: "cuda:99"}, "device cuda:99 was asked for, but there are"),
        ({6: "--top-k", 7: "0"}, "--top-k must be >= 1, got 0"),
        ({6: "--dtype", 7: "int4"}, "dtype must be auto, float32"),
        ({6: "--json", 7: "/no/such/out.json"}, "--json /no/such/out.json: no such directory"),
        ({6: "--json", 7: "/"}, "--json /: is a directory, not a file"),
        ({6: "--rate-hz", 7: "0"}, "sampling.rate_hz must be finite and > 0, got 0.0"),
        ({6: "--save-frames", 7: "/dev/null/x"}, "Not a directory"),
    ],
)
def test_bad_input_exits_2_with_one_line(change, message, arguments, capsys):
    changed = dict(enumerate(arguments)) | change
    assert main([changed[i] for i in sorted(changed)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("itg-select: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (300 * "a", [], "a: File name too long"),
        (None, ["--save-frames", 300 * "a"], "a: File name too long"),
        (None, ["--json", 300 * "a"], "a: File name too long"),
        (None, ["--max-pooled-side", "0"], "--max-pooled-side must be >= 1, got 0"),
        (
            None,
            ["--decode", "nvdec", "--report", "r.html"],
            "--report needs the frames, which --decode nvdec leaves on the GPU",
        ),
        (
            None,
            ["--decode", "nvdec", "--plot", "p.png"],
            "--plot needs the frames, which --decode nvdec leaves on the GPU",
        ),
    ],
)
def test_bad_options_are_told_before_a_model_is_looked_for(
    name, options, message, arguments, capsys
):
    command = [name or arguments[0], "where", "--model", "/no/such/model", *options]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--json", "--report", "--plot"])
def test_a_result_does_not_overwrite_the_video(option, arguments, video, capsys, tmp_path):
    linked = tmp_path / "own.png"
    linked.symlink_to(video)
    before = video.read_bytes()
    for name in (str(video), str(linked)):
        assert main([*arguments, option, name]) == 2
        assert f"{option} {name}: would overwrite what is to be read" in capsys.readouterr().err
    assert video.read_bytes() == before


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--json", "out.json", "."),
        ("--report", "link.html", "other"),
        ("--plot", "new.svg", "."),
        ("--save-frames", "a/b", "."),
    ],
)
def test_where_nothing_can_be_written_no_model_is_looked_for(
    option, name, told, arguments, capsys, tmp_path, monkeypatch
):
    (tmp_path / "out.json").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "link.html").symlink_to("other/out.html")
    # root may write anywhere, but to a file system that is read-only
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append((path, mode)))
    command = [*arguments[:2], "--model", "/no/such/model", option, str(tmp_path / name)]
    assert main(command) == 2
    assert asked == [(tmp_path / told, os.W_OK)]
    assert f"{option}: {tmp_path / told} cannot be written" in capsys.readouterr().err


def test_two_results_in_one_file_are_refused(arguments, capsys, tmp_path):
    out = str(tmp_path / "out.html")
    assert main([*arguments, "--json", out, "--report", out]) == 2
    assert "--json, --report and --plot must name different files" in capsys.readouterr().err


def test_a_fault_that_only_the_model_can_tell_is_one_line_too(arguments, capsys, monkeypatch):
    def refuse(*_):
        raise ValueError("the question must not be blank")

    monkeypatch.setattr("itg_model.grounder.FrameGrounder.select", refuse)
    assert main(arguments) == 2
    assert capsys.readouterr().err == "itg-select: the question must not be blank\n"


@pytest.mark.parametrize("content", [b"", b"no video" * 100], ids=["empty", "text"])
def test_a_file_that_is_no_video_exits_2_with_one_line(content, arguments, capsys, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    # the model does not even exist: the video is looked at first
    assert main([str(path), *arguments[1:3], "/no/such/model"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"itg-select: {path}: " in captured.err
    assert captured.err.count("\n") == 1


def test_a_folder_that_is_no_checkpoint_says_what_one_is(arguments, checkpoint_dir, capsys):
    run_dir = checkpoint_dir.parent
    (run_dir / "config.json").write_text("{}")
    assert main([*arguments[:2], "--model", str(run_dir)]) == 2
    assert f"{run_dir}: is a run's folder; its checkpoint is {checkpoint_dir}" in (
        capsys.readouterr().err
    )
    (checkpoint_dir / "config.json").unlink()
    assert main([*arguments[:2], "--model", str(checkpoint_dir)]) == 2
    assert f"{checkpoint_dir}: holds no config.json; a checkpoint is" in capsys.readouterr().err


def test_without_a_model_the_one_that_comes_along_scores_and_says_what_it_knows(arguments, capsys):
    assert main([*arguments[:2], *arguments[4:]]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["model"] == "itg-tiny"
    assert captured.err.startswith("itg-select: itg-tiny scores: it knows the drawn shapes")


@pytest.mark.parametrize("name", ["[anime] x.mp4", "[/anime] x.mp4", "[red]x[/red].mp4"])
def test_the_progress_names_the_file_as_it_is_called(name, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with cli._show_progress(name) as show:
        show(1, 2)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert f"reading {name} " in shown


@pytest.mark.parametrize("asks_many", [False, True])
def test_the_progress_sends_no_control_characters_of_a_name_to_the_terminal(
    asks_many, arguments, video, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    hostile = tmp_path / "videos" / "a\x1b]0;owned\x07.mp4"
    hostile.parent.mkdir()
    hostile.symlink_to(video)
    assert main([str(hostile.parent if asks_many else hostile), *arguments[1:]]) == 0
    shown = capsys.readouterr().err
    assert "\x1b]0;" not in shown
    assert r"a\x1b]0;owned\x07.mp4" in shown


def test_an_unknown_option_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--topk", "3"])
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_every_policy_can_be_named_that_needs_no_more_than_scores_and_times():
    from typing import get_args, get_type_hints

    from itg_model.policies import policy_info, policy_names

    named = set(get_args(get_type_hints(cli.Request)["policy"]))
    assert named == {name for name in policy_names() if not policy_info(name).required}
    assert set(policy_names()) - named == {"mdp3", "temporal-nms"}


def test_parameters_of_the_policy_are_options(arguments, capsys):
    options = ["--policy", "min-gap", "--policy-param", "min_gap_s=3", "--top-k", "3"]
    assert main([*arguments, *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["policy"] == "min-gap(min_gap_s=3)"
    times = [frame["time_s"] for frame in result["selected"]]
    assert min(b - a for a, b in pairwise(times)) >= 3
    options = ["--policy", "aks", "--policy-param", "t1=-0.5", "--policy-param", "depth=2"]
    assert main([*arguments, *options]) == 0
    assert json.loads(capsys.readouterr().out)["policy"] == "aks(depth=2, t1=-0.5)"


@pytest.mark.parametrize(
    ("policy", "params", "message"),
    [
        ("aks", ["depth"], "aks takes NAME=VALUE with NAME one of t1, t2, depth, ratio, each once"),
        ("aks", ["power=2"], "each once, got 'power=2'"),
        ("aks", ["depth=2", "depth=2"], "each once, got 'depth=2'"),
        ("aks", ["depth=2.5"], "aks: depth must be a whole number in 0..64, got '2.5'"),
        ("aks", ["t1="], "aks: t1 must be a number, got ''"),
        ("aks", ["t1=nan"], "aks: t1 must be a number, got nan"),
        ("min-gap", ["times_s=3"], "one of min_gap_s, each once, got 'times_s=3'"),
        ("top-k", ["k=3"], "top-k takes none, got 'k=3'"),
    ],
)
def test_a_senseless_parameter_of_the_policy_exits_2_with_one_line(
    policy, params, message, arguments, capsys
):
    options = [word for param in params for word in ("--policy-param", param)]
    assert main([*arguments, "--policy", policy, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("itg-select: --policy-param: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_interrupt_exits_130_without_a_traceback(arguments, capsys, monkeypatch):
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_select", interrupt)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "itg-select: interrupted\n"


def test_help_and_a_missing_file_do_not_wait_for_torch():
    code = (
        "import sys; from itg_model.cli import main\n"
        "assert main(['no-such.mp4', 'where', '--model', 'x']) == 2\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_control_c_ends_a_real_run_with_130(arguments):
    code = (
        "import os, signal, sys, time; from itg_model import cli\n"
        "def hang(request):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(3600)\n"
        "cli._check = hang\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 130
    assert done.stderr == "itg-select: interrupted\n"
