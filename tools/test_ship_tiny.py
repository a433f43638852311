import subprocess
import sys

import pytest
import ship_tiny
import torch
from itg_model.grounder import FrameGrounder
from safetensors.torch import load_file

SMALL = {
    "data.synthetic.num-train": 3,
    "data.synthetic.num-heldout": 2,
    "data.synthetic.duration-s": 12,
    "data.synthetic.height": 32,
    "data.synthetic.width": 48,
    "data.synthetic.num-place-questions": 0,
    "model.text.num-hidden-layers": 1,
    "num-steps": 3,
    "engine.device": "cpu",
}


@pytest.mark.slow
def test_a_run_is_shipped_in_bfloat16_with_a_card_of_what_is_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [str(word) for name, value in SMALL.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "itg_train", "itg-tiny", *flags]
    subprocess.run(command, check=True)
    shipped = tmp_path / "shipped"
    # in a process of its own: it becomes a group of processes
    command = [sys.executable, ship_tiny.__file__, "runs/itg-tiny", "--into", str(shipped)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout == f"{shipped}/README.md\n"
    tensors = load_file(shipped / "model.safetensors")
    trained = load_file(tmp_path / "runs/itg-tiny/checkpoint/model.safetensors")
    assert {name: x.to(torch.bfloat16) for name, x in trained.items()}.keys() == tensors.keys()
    assert all(torch.equal(trained[name].to(torch.bfloat16), tensors[name]) for name in trained)
    FrameGrounder.from_pretrained(shipped)
    card = (shipped / "README.md").read_text()
    assert "`itg-train itg-tiny --" in card
    assert "--data.synthetic.num-train 3" in card
    assert (shipped / "curve.png").exists()


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path, capsys):
    assert ship_tiny.main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "config.json" in err
