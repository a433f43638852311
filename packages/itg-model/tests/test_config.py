import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from itg_model import CheckpointError, FrameGroundingConfig, FrameGroundingModel
from itg_model.config import TextConfig, VisionConfig, read_config
from transformers import SiglipConfig, SiglipVisionConfig, SiglipVisionModel

PUBLISHED = json.loads((Path(__file__).parent / "data" / "parity" / "tiny_config.json").read_text())
SO400M = {"mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_hidden_size": 1152}


def test_a_config_survives_its_own_json(tiny_config):
    data = json.loads(json.dumps(tiny_config.to_json()))
    assert FrameGroundingConfig.from_json(data) == tiny_config


def test_the_published_form_is_read(siglip_config):
    config = FrameGroundingConfig.from_json(PUBLISHED, siglip_config)
    assert config.text.hidden_size == 64
    assert config.text.num_key_value_heads == 2
    assert config.vision.grid_side == 7
    assert config.num_vision_layers == 3
    assert (config.vision_token_num, config.tokenizer_model_max_length) == (64, 96)


@pytest.mark.parametrize("model_type", ["eagle_QwenG", "Eagle_qwenG"])
def test_the_published_tower_is_known_without_the_hub(model_type):
    config = FrameGroundingConfig.from_json(PUBLISHED | SO400M | {"model_type": model_type})
    assert config.vision == VisionConfig()
    assert config.vision.grid_side == 27
    assert config.num_vision_layers == 26


def test_the_tower_may_stand_in_the_published_config_itself(siglip_config):
    config = FrameGroundingConfig.from_json(PUBLISHED | {"vision_config": siglip_config})
    assert config.vision.hidden_size == 32


def test_the_tower_may_be_given_in_any_of_siglips_forms(siglip_config):
    wanted = FrameGroundingConfig.from_json(PUBLISHED, siglip_config)
    whole = SiglipConfig(vision_config=siglip_config)
    for form in (SiglipVisionConfig(**siglip_config), whole.to_dict(), wanted.vision):
        assert FrameGroundingConfig.from_json(PUBLISHED, form) == wanted


def test_what_a_siglip_config_leaves_out_has_siglips_defaults():
    config = FrameGroundingConfig.from_json(
        PUBLISHED | {"mm_hidden_size": 768}, {"hidden_size": 768}
    )
    assert (config.vision.patch_size, config.vision.num_hidden_layers) == (16, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type must be 'itg_frame_grounder' or 'eagle_QwenG'"),
        ({"mm_vision_tower": "someone/tower"}, "'someone/tower' is not one of"),
        ({"mm_projector_type": "mlp2x"}, "mm_projector_type must be 'seq_mlp', got 'mlp2x'"),
        ({"mm_use_4_vision_tokens": True}, "mm_use_4_vision_tokens must be False, got True"),
        ({"use_sliding_window": True}, "use_sliding_window must be False, got True"),
        ({"mm_hidden_size": 99}, "mm_hidden_size is 99, but the vision tower's hidden_size is"),
        ({"hidden_size": "64"}, "hidden_size must be int, got '64'"),
        ({"mm_vision_select_layer": -40}, r"select_layer must leave 1..27 blocks .* got -40"),
        ({"vision_token_num": 0}, "config.vision_token_num must be > 0, got 0"),
    ],
)
def test_a_published_config_that_cannot_be_honoured_is_named(change, message):
    with pytest.raises(CheckpointError, match=message):
        FrameGroundingConfig.from_json(PUBLISHED | SO400M | change)


@pytest.mark.parametrize("name", ["hidden_size", "vision_token_num", "tokenizer_model_max_length"])
def test_a_field_missing_from_the_published_form_is_named(name):
    data = {k: v for k, v in (PUBLISHED | SO400M).items() if k != name}
    with pytest.raises(CheckpointError, match=f"missing field {name}"):
        FrameGroundingConfig.from_json(data)


def test_our_own_form_is_read_strictly(tiny_config):
    data = tiny_config.to_json()
    with pytest.raises(CheckpointError, match="unknown field dropout"):
        FrameGroundingConfig.from_json(data | {"dropout": 0.1})
    with pytest.raises(CheckpointError, match=r"missing field text\.hidden_size"):
        FrameGroundingConfig.from_json(
            data | {"text": {k: v for k, v in data["text"].items() if k != "hidden_size"}}
        )
    with pytest.raises(CheckpointError, match="format_version must be 1, got 2"):
        FrameGroundingConfig.from_json(data | {"format_version": 2})
    with pytest.raises(CheckpointError, match=r"vision\.image_size must be int, got 24\.5"):
        FrameGroundingConfig.from_json(data | {"vision": data["vision"] | {"image_size": 24.5}})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TextConfig(num_attention_heads=5), "num_attention_heads must divide hidden_size"),
        (lambda: TextConfig(num_key_value_heads=3), "num_key_value_heads must divide"),
        (lambda: TextConfig(hidden_size=28), "must be even for rotary positions, got 28 / 28"),
        (lambda: VisionConfig(patch_size=400), r"patch_size must be in 1..image_size \(384\)"),
        (lambda: VisionConfig(layer_norm_eps=0.0), "vision.layer_norm_eps must be > 0, got 0.0"),
    ],
)
def test_a_config_that_cannot_be_built_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_config_file_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: (not JSON|expected an object)"):
        read_config(tmp_path)


def test_a_directory_without_a_config_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        read_config(tmp_path)


def test_the_default_is_the_published_model_tensor_for_tensor():
    with torch.device("meta"):
        model = FrameGroundingModel(FrameGroundingConfig())
        whole = SiglipVisionModel(FrameGroundingConfig().to_vision_config("sdpa"))
        published_tower = SiglipVisionModel(
            SiglipVisionConfig(**dataclasses.asdict(VisionConfig()))
        )
    used = sum(p.numel() for p in model.tower.parameters())
    tower = sum(p.numel() for p in published_tower.parameters())
    # 7,515,829,313 parameters lie in the published files, the whole tower among them
    assert sum(p.numel() for p in model.parameters()) == 7_515_829_313 - tower + used
    assert len(whole.encoder.layers) == len(model.tower.encoder.layers) == 26


def test_drawn_sides_lie_between_the_smallest_and_the_largest(tiny_config):
    rng = random.Random(0)
    drawn = {n: {tiny_config.draw_pooled_side(n, rng) for _ in range(200)} for n in (1, 7, 16, 64)}
    # one frame may have 8 x 8 tokens, but its grid has 3 x 3
    assert drawn == {1: {1, 2, 3}, 7: {1, 2, 3}, 16: {1, 2}, 64: {1}}


def test_the_smallest_side_that_training_draws_is_the_configs(tiny_config):
    config = dataclasses.replace(tiny_config, vision_min_num=2)
    rng = random.Random(0)
    assert {config.draw_pooled_side(7, rng) for _ in range(100)} == {2, 3}
    assert {config.draw_pooled_side(64, rng) for _ in range(100)} == {1}
