import json

import pytest
from itg_train.rundir import RunError
from itg_train.states import read_latest, write_latest

WHOLE = {"tag": "step-3", "step": 3, "world_size": 2}


def test_the_newest_state_is_the_one_that_was_named_last(tmp_path):
    assert read_latest(tmp_path) == {}
    for step in (3, 6, 9):
        (tmp_path / f"step-{step}").mkdir()
        write_latest(tmp_path, f"step-{step}", step, 2)
    assert read_latest(tmp_path) == {"tag": "step-9", "step": 9, "world_size": 2}
    assert not (tmp_path / "step-3").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps({"tag": "step-3", "step": 3}), "cannot be read: KeyError..world_size"),
        (json.dumps(WHOLE | {"world_size": "many"}), "cannot be read"),
        (json.dumps(WHOLE | {"tag": "step-9"}), "names the state step-9, which is not there"),
        (json.dumps(WHOLE | {"tag": "../../step-9"}), "names the state step-9, which is not"),
    ],
)
def test_a_state_that_cannot_be_the_newest_is_refused_in_a_line(tmp_path, content, reason):
    (tmp_path / "step-3").mkdir()
    (tmp_path / "latest").write_text(content)
    with pytest.raises(RunError, match=reason) as caught:
        read_latest(tmp_path)
    assert "\n" not in str(caught.value)
