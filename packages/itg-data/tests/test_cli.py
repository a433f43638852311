import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from itg_data import cli


def test_probe_says_what_a_file_holds_and_who_reads_it(plain_video, capsys):
    assert cli.main(["probe", str(plain_video)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    told = json.loads(out)
    assert told.pop("duration_s") == pytest.approx(48 / 25)
    assert told == {
        "video": str(plain_video),
        "format": "mov",
        "codec": "h264",
        "pix_fmt": "yuv420p",
        "height": 64,
        "width": 96,
        "fps": 25.0,
        "num_frames": 48,
        "oddities": [],
        "backend": "pyav",
    }


def test_probe_goes_on_after_a_bad_file_and_ends_with_2(plain_video, tmp_path, capsys):
    bad = tmp_path / "new\nline.mp4"
    bad.write_text("no video")
    assert cli.main(["probe", str(bad), str(plain_video), "--backend", "pyav"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["backend"] == "pyav"
    assert err.count("\n") == 1
    assert "new\\nline.mp4" in err


def test_probe_wants_a_video(capsys):
    assert cli.main(["probe"]) == 2
    assert "at least one video" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_line(scripted_root, capsys):
    assert cli.main(["view", str(scripted_root), "--out", "/dev/null/pages"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "itg-data: /dev/null/pages: Not a directory"


def test_an_unknown_command_exits_with_2():
    with pytest.raises(SystemExit) as caught:
        cli.main(["conjure"])
    assert caught.value.code == 2


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


def test_a_reader_of_stdout_that_leaves_early_is_no_error(plain_video):
    command = [sys.executable, "-m", "itg_data.cli", "probe", *[str(plain_video)] * 50]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        complaints = process.stderr.read()
    assert process.returncode == 1
    assert complaints == ""


def test_the_examples_of_the_readme_run(plain_video, tmp_path, monkeypatch):
    readme = Path(__file__).parents[1] / "README.md"
    examples = re.findall(r"```python\n(.*?)```", readme.read_text(), flags=re.DOTALL)
    assert len(examples) == 3
    shutil.copy(plain_video, tmp_path / "film.mp4")
    monkeypatch.chdir(tmp_path)
    for example in examples:
        names: dict[str, Any] = {}
        exec(example, names)
        if "batch" in names:
            assert names["batch"].frames.shape[1:] == (384, 384, 3)


def test_the_figures_of_the_readme_are_those_of_the_rows(load_script):
    package = Path(__file__).parents[1]
    benchmark = load_script(package / "benchmarks" / "decode.py")
    lines = (package / "benchmarks/results/nvidia-h200-16-cores.jsonl").read_text().splitlines()
    table = benchmark.format_table([json.loads(line) for line in lines])
    assert table in (package / "README.md").read_text()
