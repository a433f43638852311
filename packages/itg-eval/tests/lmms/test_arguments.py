import json

import pytest
from itg_data.errors import ItgError
from itg_eval.lmms.arguments import (
    SECRETS_VARIABLE,
    identify,
    is_secret,
    read_secrets,
    redact,
    split_secrets,
)


@pytest.mark.parametrize(
    "name", ["api_key", "API_KEY", "apikey", "openai_api_key", "token", "hf_token", "db_password"]
)
def test_secrets_are_known_by_their_names(name):
    assert is_secret(name)
    assert redact(f"a=1,{name}=sk-1,b=2") == f"a=1,{name}=***,b=2"
    assert split_secrets(f"a=1,{name}=sk=1,b=2") == ("a=1,b=2", {name: "sk=1"})


@pytest.mark.parametrize("name", ["max_new_tokens", "tokenizer", "pretrained", "keys", "secretary"])
def test_what_only_looks_like_a_secret_is_none(name):
    assert not is_secret(name)
    assert redact(f"{name}=1") == f"{name}=1"


def test_secrets_come_from_the_environment(monkeypatch):
    assert read_secrets() == {}
    monkeypatch.setenv(SECRETS_VARIABLE, json.dumps({"api_key": "sk-1"}))
    assert read_secrets() == {"api_key": "sk-1"}
    for broken in ("sk-1", "[1]"):
        monkeypatch.setenv(SECRETS_VARIABLE, broken)
        with pytest.raises(ItgError, match="must be a JSON object") as caught:
            read_secrets()
        assert "sk-1" not in str(caught.value)


def test_an_answer_depends_on_arguments_but_not_on_speed_place_or_key():
    base = {"pretrained": "org/name", "max_pixels": 4}
    for name in ("batch_size", "max_batch_size", "device", "api_key"):
        assert identify(base | {name: "8"}) == identify(base)
    assert identify(base | {"max_pixels": 8}) != identify(base)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json"])
def test_an_answer_depends_on_the_weights_that_lie_in_a_local_folder(file, tmp_path):
    (tmp_path / file).write_bytes(b"1")
    first = identify({"pretrained": str(tmp_path)})
    assert identify({"pretrained": str(tmp_path)}) == first
    (tmp_path / file).write_bytes(b"2")
    assert identify({"pretrained": str(tmp_path)}) != first
