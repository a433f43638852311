import subprocess
import sys

import pytest
from itg_eval.cli import COMMANDS, main


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_needs_neither_torch_nor_lmms_eval(arguments):
    code = f"""
import sys
from itg_eval.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert not end.code, end.code
assert not {{"torch", "transformers", "lmms_eval"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("usage: itg-eval")


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["guess"])
    assert caught.value.code == 2
    assert "guess" in capsys.readouterr().err
