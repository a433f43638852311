"""What the command says on stderr while it runs and when it ends."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from itg_data import cli


@pytest.fixture
def start(tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Runs `itg-data annotate` in a process of its own; stderr goes to `err`."""

    def run(config, *more: str, script: str = "", base_url: str | None = None):
        told = {"videos": config.videos, "qa": config.qa, "out": config.out}
        told |= {"base-url": base_url or config.annotator.base_url, "model": config.sampler.model}
        code = f"{script}\nimport sys\nfrom itg_data.cli import main\nsys.exit(main(sys.argv[1:]))"
        options = [f"--{name}={value}" for name, value in told.items()]
        with (tmp_path / "err").open("w") as err:
            return subprocess.Popen(
                [sys.executable, "-c", code, "annotate", *options, *more],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                # shells let background jobs ignore it, and children inherit that
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    return run


@pytest.fixture
def told(tmp_path) -> Callable[[], list[str]]:
    """What the command has said on stderr so far, line by line."""
    return lambda: (tmp_path / "err").read_text().splitlines()


def wait_until(holds: Callable[[], object], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it does not come to hold"
        time.sleep(0.02)


def many_videos(videos: Path, folder: Path) -> Path:
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.mp4").symlink_to(videos / "short.mp4")
    return folder


@pytest.mark.parametrize(
    ("fault", "complaint"), [("dead", "does not answer"), ("bad key", "answers 401")]
)
def test_a_server_that_serves_nobody_is_one_line_however_many_find_out(
    make_config, make_pair, server, videos, tmp_path, start, told, fault, complaint
):
    pairs = [make_pair(n, video=f"{n}.mp4") for n in range(8)]
    config = make_config(pairs, videos=many_videos(videos, tmp_path / "films"))
    server.reply = lambda asked: server.Reply("bad key", 401)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        process = start(config, "--max-retries=0", base_url=nobody if fault == "dead" else None)
        out, _ = process.communicate()
    assert (process.returncode, out) == (1, "")
    (line,) = [line for line in told() if not line.startswith("annotate: 0 of 8 pairs")]
    assert line.startswith("itg-data annotate: http://127.0.0.1:")
    assert complaint in line


def test_without_a_terminal_lines_say_how_far_it_is_and_how_long_it_takes(
    make_config, make_pair, server, start, told
):
    def slow(asked):
        time.sleep(0.05)
        return server.sensible(asked)

    server.reply = slow
    # so many that they do not all end between two looks, half a second apart
    pairs = [make_pair(n, video=("short.mp4", "long.mp4")[n % 2]) for n in range(24)]
    script = "import itg_data.progress as p\np.SECONDS_BETWEEN_LINES = 0.1"
    options = ("--concurrency=1", "--num-decoders=1")
    process = start(make_config(pairs), *options, script=script)
    out, _ = process.communicate()
    assert json.loads(out)["annotated"] == 24
    lines = told()
    assert all(line.startswith("annotate: ") for line in lines)
    assert any(" of 24 pairs, 0 dropped, " in line and line.endswith(" s left") for line in lines)
    assert [line.startswith("annotate: 24 of 24 pairs") for line in lines].count(True) == 1


def test_a_dry_run_says_how_far_it_is(make_config, make_pair, start, told):
    script = "import itg_data.progress as p\np.SECONDS_BETWEEN_LINES = 0"
    config = make_config([make_pair(0), make_pair(1, video="none.mp4")])
    process = start(config, "--dry-run", script=script)
    out, _ = process.communicate()
    assert json.loads(out)["num_videos"] == 2
    assert told()[-1].startswith("looking at videos: 2 of 2 videos")
    assert told()[0].startswith("looking at videos: 0 of 2 videos")


def test_the_first_interrupt_says_that_it_waits_and_keeps_what_was_asked(
    make_config, make_pair, server, start, told
):
    def slow(asked):
        time.sleep(1.2)
        return server.sensible(asked)

    server.reply = slow
    process = start(make_config([make_pair(0)]))
    wait_until(lambda: len(server.asked) == 2)
    process.send_signal(signal.SIGINT)
    waits = "itg-data annotate: waiting up to 30 s for answers under way; again to stop at once"
    wait_until(lambda: waits in told(), timeout_s=1)
    assert process.poll() is None
    process.communicate()
    assert process.returncode == 130
    assert told()[-1] == "itg-data annotate: interrupted; start again to go on from here"
    server.reply = server.sensible
    again = start(make_config([make_pair(0)]))
    out, _ = again.communicate()
    assert json.loads(out)["from_ledger"] == 2


def test_the_second_interrupt_stops_at_once(make_config, make_pair, server, start, told):
    def slow(asked):
        time.sleep(15)
        return server.sensible(asked)

    server.reply = slow
    process = start(make_config([make_pair(0)]))
    wait_until(lambda: len(server.asked) == 2)
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    wait_until(lambda: any("again to stop at once" in line for line in told()))
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert time.monotonic() - began_s < 5
    assert process.returncode == 130
    assert told()[-1] == "itg-data annotate: stopped; start again to go on from here"


def test_what_a_server_says_cannot_steer_the_terminal(make_config, make_pair, server, capsys):
    server.reply = lambda asked: server.Reply("\x1b[2J\x1b]0;owned\x07\x9b31m", 401)
    config = make_config([make_pair(0)])
    told = {"videos": config.videos, "qa": config.qa, "out": config.out, "model": "m"}
    options = [f"--{name}={value}" for name, value in told.items()]
    assert cli.main(["annotate", *options, f"--base-url={server.base_url}"]) == 1
    err = capsys.readouterr().err
    assert "owned" in err
    assert err.replace("\n", "").isprintable()
