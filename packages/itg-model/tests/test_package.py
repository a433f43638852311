import subprocess
import sys

import itg_model


def run(code: str) -> str:
    """What a fresh process prints, in which no name has been used yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_names_that_were_not_used_yet_are_completed_and_cost_no_torch():
    code = "import sys, itg_model; print(*dir(itg_model)); print('torch' in sys.modules)"
    names, has_torch = run(code).splitlines()
    assert set(itg_model.__all__) == {n for n in names.split() if not n.startswith("_")}
    assert has_torch == "False"
