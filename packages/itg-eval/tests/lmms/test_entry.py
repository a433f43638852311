import subprocess
import sys

import pytest
from itg_eval.lmms.entry import builtin_manifests, is_builtin, manifests


def test_without_being_asked_nothing_of_lmms_eval_is_replaced(monkeypatch):
    monkeypatch.delenv("ITG_SHADOW", raising=False)
    ours = {manifest.model_id for manifest in manifests()}
    assert ours == {"itg", "itg_reader"}
    assert not ours & {manifest.model_id for manifest in builtin_manifests()}


def test_when_asked_one_id_is_replaced_by_the_same_kinds_of_class(monkeypatch):
    monkeypatch.setenv("ITG_SHADOW", "internvl2")
    *_, shadow = manifests()
    assert shadow.model_id == "internvl2"
    assert shadow.simple_class_path == "itg_eval.lmms.wrapper.SimpleShadow"
    assert shadow.chat_class_path is None


def test_only_ids_of_lmms_eval_can_be_shadowed(monkeypatch):
    monkeypatch.setenv("ITG_SHADOW", "itg_reader")
    with pytest.raises(ValueError, match="ITG_SHADOW must be a model id of lmms-eval"):
        manifests()
    assert is_builtin("qwen3_vl")
    assert not is_builtin("itg_reader")


def test_lmms_eval_finds_us_by_itself_and_we_bring_no_torch_into_it():
    code = """
import sys
from lmms_eval.models import MODEL_REGISTRY_V2 as registry
print(registry.resolve("itg").class_path, registry.resolve("itg", force_simple=True).class_path)
print(registry.resolve("qwen3_vl").class_path)
assert "torch" not in sys.modules
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"ITG_SHADOW": "qwen3_vl"},
    )
    assert run.stdout.split() == [
        "itg_eval.lmms.wrapper.ITG",
        "itg_eval.lmms.wrapper.SimpleITG",
        "itg_eval.lmms.wrapper.Shadow",
    ]
