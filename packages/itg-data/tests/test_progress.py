import logging
import sys

from itg_data import progress
from itg_data.progress import show_progress


def test_without_a_terminal_there_are_lines_now_and_then_with_the_time_left(caplog, monkeypatch):
    now_s = iter([0.0, 1.0, 11.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now_s))
    with caplog.at_level(logging.INFO), show_progress("scoring", 4, unit="questions") as advance:
        for done in (1, 2, 4):
            advance(done, "")
    assert caplog.messages == [
        "scoring: 2 of 4 questions, 22 s left",
        "scoring: 4 of 4 questions",
    ]


def test_the_other_processes_are_quiet(caplog):
    with caplog.at_level(logging.INFO), show_progress("x", 1, unit="y", quiet=True) as advance:
        advance(1, "")
    assert caplog.messages == []


def test_on_a_terminal_there_is_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with show_progress("scoring", 2, unit="questions") as advance:
        advance(2, "quick")
    assert "scoring" in capsys.readouterr().err


def test_a_bar_shows_what_others_wrote_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with show_progress("choosing", 2, unit="questions") as advance:
        advance(2, "[bold]x.mp4")
    assert "[bold]x.mp4" in capsys.readouterr().err
