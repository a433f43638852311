"""Every command of the documentation, run as its readers would."""

import ast
import contextlib
import doctest
import functools
import io
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import doc_commands
import numpy as np
import pytest
import workspace
from doc_commands import Block
from itg_data.synthetic import encode_mp4
from itg_model import cli as itg_select

BLOCKS = doc_commands.all_blocks()
SHELL = [b for b in BLOCKS if b.language in ("bash", "console") and b.mark != "not run"]
UNRUN = [b for b in BLOCKS if b.mark in ("not run", "run instead")]
PYTHON = sorted({b.page for b in BLOCKS if b.language == "python"})
OPTION = re.compile(r"(?<!\S)--[a-z][a-z.-]+(?!\w)")
COMMANDS = (
    "itg-select",
    "itg-select --ui",
    "itg-train",
    *(f"itg-data {name}" for name in ("probe", "annotate", "check", "stats", "view", "import")),
    *(f"itg-eval {name}" for name in ("run", "report", "documents", "score", "select", "frames")),
    *(f"itg-eval {name}" for name in ("import-results", "scripted")),
    "python -m itg_data.scripted_vlm",
)
VENV = Path(sys.executable).parents[1]
TIMEOUT_S = 600


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A copy of the repository with the files that pages take for granted."""
    # imported here: most tests of this file need no torch
    import tiny

    root = tmp_path_factory.mktemp("copy") / "itg"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=workspace.ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, names.stdout.split("\0")):
        if (workspace.ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(workspace.ROOT / name, root / name)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    first, second = tiny.write_videos(root / "set")
    (root / "videos").mkdir()
    for place in ("video.mp4", "videos/a.mp4"):
        shutil.copy(first, root / place)
    shutil.copy(second, root / "videos" / "b.mp4")
    frames = np.random.default_rng(0).integers(0, 255, (48, 64, 96, 3), dtype=np.uint8)
    encode_mp4(root / "film.mp4", frames, fps=25)
    tiny.write_grounder(root / "CHECKPOINT")
    (root / "questions.txt").write_text("Who comes in?\nWho leaves?\n")
    (root / "questions.jsonl").write_text('{"video": "film.mp4", "question": "Who comes in?"}\n')
    shutil.copytree(root / "CHECKPOINT", root / "runs" / "scripted-small" / "checkpoint")
    return root


def run(command, cwd):
    # uv finds this environment, and the packages in it, instead of making one of its own
    environment = os.environ | {
        "PATH": f"{VENV}/bin:{os.environ['PATH']}",
        "UV_PROJECT_ENVIRONMENT": str(VENV),
        "UV_NO_SYNC": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONWARNINGS": "default",
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # no pipes: what a command leaves in the background would keep them open
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        try:
            returncode = process.wait(TIMEOUT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, returncode, out.read(), err.read())


@functools.cache
def run_script(script, cwd):
    """Runs a script once, on however many pages it stands."""
    words = script.replace("\\\n", " ").removeprefix("uv run ")
    if words.startswith("itg-select ") and not set(words) & set("\n|&;<>$"):
        # the command's own function in this process, which has torch already
        with contextlib.chdir(cwd), contextlib.redirect_stdout(io.StringIO()) as output:
            assert itg_select.main(shlex.split(words)[1:]) == 0, script
        return output.getvalue()
    done = run(["bash", "-euo", "pipefail", "-c", script], cwd)
    assert done.returncode == 0, f"{script}\nexits {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@functools.cache
def ask_help(words):
    done = run([*words, "--help"], workspace.ROOT)
    assert done.returncode == 0, f"{' '.join(words)} --help exits {done.returncode}: {done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("block", SHELL, ids=lambda b: b.name)
def test_the_commands_of_a_page_do_what_it_says(block, repository):
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    # a page goes on from what it made above, which another process may have tested
    for before in itertools.takewhile(lambda b: b is not block, SHELL):
        if before.page == block.page:
            for script, _ in doc_commands.steps_of(before):
                run_script(script, repository)
    for script, wanted in doc_commands.steps_of(block):
        output = run_script(script, repository)
        if wanted is not None:
            assert doctest.OutputChecker().check_output(wanted, output, flags), output


@pytest.mark.slow
@pytest.mark.parametrize("block", UNRUN, ids=lambda b: f"{b.name} {b.mark}: {b.note}")
def test_what_is_not_run_as_it_stands_is_at_least_possible(block):
    if block.language == "python":
        ast.parse(block.text)
        return
    for words in doc_commands.commands_in(block):
        unknown = doc_commands.unknown_options(words, lambda first: ask_help(tuple(first)))
        assert unknown == [], f"{block.name}: {' '.join(words)}"


@pytest.mark.slow
def test_options_that_a_page_mentions_in_passing_exist():
    helps = [ask_help(tuple(command.split())) for command in COMMANDS]
    known = {option for text in helps for option in OPTION.findall(text)}
    assert len(known) > 100
    unknown = set()
    for page in set(doc_commands.pages()) - {"CONTRIBUTING.md", "LOG.md"}:
        text = re.sub(r"(?s)```.*?```", "", (workspace.ROOT / page).read_text())
        code = " ".join(re.findall(r"`([^`\n]+)`", text))
        unknown |= {f"{page}: {option}" for option in OPTION.findall(code) if option not in known}
    # the reference's own, beside what stands for it here
    assert unknown == {"docs/migrating.md: --deepspeed"}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fills_its_lines(command):
    # "│  text   │": the lines of a box, of which those that go on are indented
    lines = re.findall(r"(?m)^│( .*) │$", ask_help(tuple(command.split())))
    broken = [
        line
        for line, following in itertools.pairwise(lines)
        if re.match(" {6,}[a-z]", following) and re.match(" {6,}", line)
        if len(line.rstrip()) + 1 + len(following.split()[0]) < len(line)
    ]
    assert broken == []


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, repository, monkeypatch):
    # in this process: each of its own would import torch anew
    monkeypatch.chdir(repository)
    source = ""
    for block in BLOCKS:
        if block.page == page and block.language == "python" and not block.mark:
            # blank lines, so that a traceback names the page's lines
            source += "\n" * (block.line - source.count("\n")) + block.text + "\n"
    exec(compile(source, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", doc_commands.pages())
def test_every_block_of_a_page_names_its_language(page):
    assert [b.name for b in BLOCKS if b.page == page and not b.language] == []


def test_a_page_is_taken_apart():
    page = """\
```bash
one \\
  --two
```
- <!-- not run: a GPU -->
  <!-- not run: needs a GPU -->
  ```bash
  itg-x go --fast
  ```
<!-- output varies -->
```console
$ itg-data show
3.1
$ true
```
"""
    first, second, third = doc_commands.blocks_of("a.md", page)
    assert first == Block(page="a.md", line=1, language="bash", text="one \\\n  --two")
    assert (second.mark, second.note, second.text) == ("not run", "needs a GPU", "itg-x go --fast")
    assert doc_commands.steps_of(third) == [("itg-data show", None), ("true", None)]
    assert doc_commands.commands_in(third) == [["itg-data", "show"]]
    with pytest.raises(ValueError, match=r"b\.md:1: the block is not closed"):
        list(doc_commands.blocks_of("b.md", "```bash\nls\n"))


def test_output_that_a_page_shows_belongs_to_its_command():
    block = Block(page="a.md", line=1, language="console", text="$ a \\\n>   -b\n1\n2\n$ c\n")
    assert doc_commands.steps_of(block) == [("a   -b", "1\n2\n"), ("c", "")]


def test_an_option_that_the_command_does_not_have_is_named():
    helps = {
        ("itg-x",): "itg-x {go,stop}",
        ("itg-x", "go"): "--fast --no-dry-run",
        ("a.py",): "--b",
    }
    for words, unknown in {
        "itg-x go there --fast --slow=3": ["--slow"],
        "itg-x go --dry-run": ["--dry-run"],
        "a.py --b 1 --c": ["--c"],
    }.items():
        assert doc_commands.unknown_options(words.split(), lambda w: helps[tuple(w)]) == unknown


def test_commands_are_found_behind_what_starts_them():
    text = "pip install itg-data && A=1 uv run --package itg-eval itg-train --a # --b\n"
    text += "python3 x/run.py --c | tee d"
    block = Block(page="a.md", line=1, language="bash", text=text)
    assert doc_commands.commands_in(block) == [["itg-train", "--a"], ["python3", "x/run.py", "--c"]]
