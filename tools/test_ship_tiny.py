import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ship_tiny
import torch
from itg_data.errors import ItgError
from itg_model.grounder import FrameGrounder
from itg_model.locate import TINY_FOLDER
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


@pytest.fixture
def run_dir(tmp_path):
    """A finished run whose checkpoint is the model that comes along."""
    directory = tmp_path / "run"
    shutil.copytree(TINY_FOLDER, directory / "checkpoint")
    described = {"recipe": "itg-tiny", "config": {}}
    (directory / "config.json").write_text(json.dumps(described))
    return directory


@pytest.fixture
def into(tmp_path):
    """What was shipped before."""
    return shutil.copytree(TINY_FOLDER, tmp_path / "into")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lose_data(monkeypatch):
    def fail(*_):
        raise ItgError("the run's data are gone")

    monkeypatch.setattr(ship_tiny, "to_options", lambda *_: [])
    monkeypatch.setattr(ship_tiny, "prepare_alone", fail)


def test_what_was_shipped_before_stays_where_shipping_fails(
    run_dir, into, tmp_path, monkeypatch, capsys
):
    lose_data(monkeypatch)
    before = contents(into)
    assert ship_tiny.main([str(run_dir), "--into", str(into)]) == 2
    assert "the run's data are gone" in capsys.readouterr().err
    assert contents(into) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "into"}


@pytest.mark.parametrize("name", ["thesis.tex", "src"])
def test_a_folder_that_holds_anything_else_is_refused(name, run_dir, into, monkeypatch, capsys):
    lose_data(monkeypatch)
    (into / name).mkdir()
    assert ship_tiny.main([str(run_dir), "--into", str(into)]) == 2
    err = capsys.readouterr().err
    assert err == f"ship_tiny: {into}: holds {name}, no part of a checkpoint; name another folder\n"
    assert (into / name).is_dir()


def test_a_folder_without_a_checkpoint_is_refused(run_dir, tmp_path, monkeypatch, capsys):
    lose_data(monkeypatch)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("precious")
    assert ship_tiny.main([str(run_dir), "--into", str(tmp_path / "docs")]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert (tmp_path / "docs" / "README.md").read_text() == "precious"


def test_a_checkpoint_is_replaced_whole_once_all_is_written(run_dir, into, tmp_path, monkeypatch):
    monkeypatch.setattr(ship_tiny, "to_options", lambda *_: [])
    monkeypatch.setattr(ship_tiny, "prepare_alone", lambda *_: SimpleNamespace(heldout=[]))
    monkeypatch.setattr(ship_tiny, "measure", lambda *_: [])
    (into / "config.json").write_text("of before")

    def write_card(folder, *_):
        assert (into / "config.json").read_text() == "of before"
        (folder / "README.md").write_text("the new card")

    monkeypatch.setattr(ship_tiny, "write_card", write_card)
    assert ship_tiny.main([str(run_dir), "--into", str(into)]) == 0
    assert (into / "README.md").read_text() == "the new card"
    assert contents(into).keys() == ship_tiny.SHIPPED - {"curve.png"}
    assert into.stat().st_mode & 0o777 == run_dir.stat().st_mode & 0o777
    FrameGrounder.from_pretrained(into)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "into"}
