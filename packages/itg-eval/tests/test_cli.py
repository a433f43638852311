from itg_eval.cli import main


def test_help_says_that_there_are_no_commands_yet(capsys):
    assert main(["--help"]) == 0
    assert "no commands" in capsys.readouterr().out


def test_anything_asked_is_refused_in_one_line(capsys):
    assert main(["score", "--task", "videomme"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
