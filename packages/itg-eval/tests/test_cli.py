import json
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


def test_what_is_logged_cannot_write_to_the_terminal(tmp_path, capsys):
    documents = tmp_path / "d.jsonl"
    document = {"schema_version": 1, "task": "t", "split": "s", "doc_id": 0, "question": "q"}
    documents.write_text(json.dumps(document | {"video": "\x1b[2Jno\n.mp4"}) + "\n")
    arguments = ["score", "--documents", str(documents), "--model", "itg-tiny", "--device", "cpu"]
    assert main([*arguments, "--output", str(tmp_path / "\x1b[2Jout")]) == 1
    complaint = capsys.readouterr().err
    assert r"\x1b[2Jno\n.mp4: no such file" in complaint
    assert r"\x1b[2Jout/failed.jsonl" in complaint
    assert "\x1b" not in complaint
