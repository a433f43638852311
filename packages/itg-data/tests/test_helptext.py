from dataclasses import dataclass, field
from importlib.metadata import version

import pytest
import tyro
from itg_data.helptext import join_help, says_version


@dataclass(frozen=True, slots=True)
class Inner:
    """What lies within."""

    size: int = 3
    """How large it is, which takes
    two lines: to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """Does something.

    At some length.
    """

    name: str | None = None
    """Who, and then
    what."""

    inner: Inner = field(default_factory=Inner)
    """Within."""


@pytest.fixture
def shown(capsys, monkeypatch) -> str:
    monkeypatch.setenv("COLUMNS", "150")
    with pytest.raises(SystemExit):
        tyro.cli(join_help(join_help(Outer)), args=["--help"])
    return capsys.readouterr().out


def test_help_breaks_where_the_terminal_ends_not_where_the_source_does(shown):
    assert "Who, and then what. (default: None)" in shown
    assert "How large it is, which takes two lines: to say. (default: 3)" in shown


def test_what_the_class_says_of_itself_stays(shown):
    assert "Does something." in shown
    assert "At some length." in shown
    assert "Attributes" not in shown
    assert Outer.__doc__ is not None
    assert Outer.__doc__.count("name: Who, and then what.") == 1


def test_a_version_is_said_where_nothing_else_is_asked(capsys):
    assert says_version(["--version"], "itg-select", "itg-data")
    assert capsys.readouterr().out == f"itg-select {version('itg-data')}\n"
    assert not says_version(["a.mp4", "--version"], "itg-select", "itg-data")
    assert not says_version([], "itg-select", "itg-data")
    assert capsys.readouterr().out == ""
