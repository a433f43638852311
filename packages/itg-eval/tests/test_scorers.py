import shutil

import pytest
from itg_eval.scorers import fingerprint
from itg_model.locate import TINY_FOLDER
from safetensors.torch import load_file, save_file


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(TINY_FOLDER, tmp_path / "checkpoint")


def test_the_model_that_comes_along_is_told_by_its_content(checkpoint):
    assert fingerprint("itg-tiny") == fingerprint(str(checkpoint))


def test_weights_that_were_trained_on_are_others(checkpoint):
    path = checkpoint / "model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(path).items()}, path)
    assert fingerprint(str(checkpoint)) != fingerprint("itg-tiny")


def test_a_directory_of_that_name_goes_before_it(checkpoint, monkeypatch):
    (checkpoint / "config.json").write_text("{}")
    checkpoint.rename(checkpoint.with_name("itg-tiny"))
    before = fingerprint("itg-tiny")
    monkeypatch.chdir(checkpoint.parent)
    assert fingerprint("itg-tiny") != before


def test_nothing_is_known_of_what_lies_on_the_hub():
    assert fingerprint("owner/name") is None
