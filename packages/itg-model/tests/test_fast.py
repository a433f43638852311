import dataclasses
import logging
import shutil

import pytest
import torch
from itg_model import FrameGrounder, FrameGroundingModel, attention
from itg_model.fast import _patches_read
from itg_model.linear import Fp8Linear, Linear
from itg_model.model import VIDEO_TOKEN_ID
from itg_model.pixels import scale_frames
from itg_model.processing import preprocess_frames
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

CASES = ["single_T5", "single_T12", "pad_token_in_prompt", "batch_mixed"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def read_case(tensors, name):
    """Frames as decoded, and ids without the pad id, as the prompt builder leaves them out."""
    ids = [row[row != 0] for row in tensors[f"{name}.input_ids"]]
    return [tensors[f"{name}.frames.{b}"].numpy() for b in range(len(ids))], ids


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_the_fast_path_gives_the_logits_of_the_reference(
    name, device, parity_model, parity_tensors
):
    frames, ids = read_case(parity_tensors, name)
    model = parity_model.to(device).for_inference()
    pixels = [preprocess_frames(f, image_size=98) for f in frames]
    with torch.inference_mode():
        logits = model(pixel_values=pixels, input_ids=ids).logits
    for b, sample in enumerate(logits):
        wanted = parity_tensors[f"{name}.logits.{b}"]
        torch.testing.assert_close(sample.cpu(), wanted, atol=1e-4, rtol=0)


def sample_of(config, num_frames: int):
    size = config.vision.image_size
    frames = torch.randint(0, 256, (num_frames, size, size, 3), dtype=torch.uint8)
    return frames, torch.cat([torch.tensor([VIDEO_TOKEN_ID]), torch.randint(1, 300, (9,))])


def wider(config, hidden_act: str):
    """A grid of 12 x 12, so that most patches of the last block are not looked at."""
    vision = dataclasses.replace(config.vision, image_size=98, hidden_act=hidden_act)
    text = dataclasses.replace(config.text, hidden_act="gelu" if hidden_act == "relu" else "silu")
    return dataclasses.replace(config, vision=vision, text=text, tokenizer_model_max_length=500)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hidden_act", ["gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 20, 64])
def test_the_fast_path_gives_what_the_blocks_give(num_frames, hidden_act, device, tiny_config):
    config = dataclasses.replace(wider(tiny_config, hidden_act), vision_token_num=300)
    model = FrameGroundingModel(config).to(device).eval()
    for parameter in model.tower.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    frames, ids = sample_of(config, num_frames)
    with torch.inference_mode():
        wanted = model.score(model.encode_frames(scale_frames(frames)), ids)
        model.for_inference()
        got = model.score(model.encode_frames(frames, frame_chunk=7), ids)
    if num_frames > 1:
        assert wanted.std() > 1e-3
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_packed_batch_gives_what_its_samples_give(device, tiny_model):
    model = tiny_model.to(device).for_inference()
    samples = [sample_of(model.config, n) for n in (3, 16, 7)]
    with torch.inference_mode():
        features = [model.encode_frames(frames) for frames, _ in samples]
        batch = model.score_batch(features, [ids for _, ids in samples])
        for item, (_, ids), together in zip(features, samples, batch, strict=True):
            torch.testing.assert_close(together, model.score(item, ids), atol=1e-5, rtol=1e-5)


def test_patches_without_weight_in_the_pooled_grid_are_left_out():
    counts = {
        side: len(kept) for side in (1, 2, 5, 8) if (kept := _patches_read(27, side)) is not None
    }
    assert counts == {1: 1, 2: 16, 5: 81, 8: 256}
    assert _patches_read(27, 27) is None
    assert _patches_read(27, 20) is None


def test_scaling_frames_is_preprocessing_bit_for_bit():
    frames = torch.arange(256, dtype=torch.uint8).repeat(3)[: 16 * 16 * 3].view(1, 16, 16, 3)
    assert torch.equal(scale_frames(frames), preprocess_frames(frames.numpy(), 16))


def test_scoring_leaves_features_as_they_were(tiny_model):
    model = tiny_model.for_inference()
    frames, ids = sample_of(model.config, 7)
    features = model.encode_frames(frames)
    before = features.clone()
    first, second = model.score(features, ids), model.score(features, ids)
    assert torch.equal(features, before)
    assert torch.equal(first, second)


def test_a_model_rebuilt_for_inference_can_be_neither_saved_nor_trained(tiny_model, tmp_path):
    tiny_model.for_inference()
    with pytest.raises(ValueError, match=r"after for_inference\(\) cannot be saved; load it anew"):
        tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be trained"):
        tiny_model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        tiny_model.for_inference()


def test_what_cannot_be_rebuilt_is_an_error(tiny_config, tiny_model):
    with pytest.raises(ValueError, match="needs attn_implementation sdpa, got 'eager'"):
        FrameGroundingModel(tiny_config, "eager").for_inference()
    with pytest.raises(ValueError, match="precision must be one of"):
        tiny_model.for_inference(precision="int4")
    with pytest.raises(ValueError, match="fp8 needs an NVIDIA GPU"):
        tiny_model.for_inference(precision="fp8")


def test_what_moves_scores_is_in_the_models_name(checkpoint_dir, video):
    grounder = FrameGrounder.from_pretrained(checkpoint_dir, "cpu", max_pooled_side=1)
    assert grounder.name == f"{checkpoint_dir}+side1"
    assert grounder.encode(video).features.shape == (10, 1, 16)
    for usual in ({}, {"dtype": "float32"}, {"dtype": torch.float32}):
        grounder = FrameGrounder.from_pretrained(checkpoint_dir, "cpu", **usual)
        assert grounder.name == str(checkpoint_dir)
    unusual = {"dtype": "bfloat16", "attn_implementation": "eager", "max_pooled_side": 1}
    grounder = FrameGrounder.from_pretrained(checkpoint_dir, "cpu", **unusual)
    assert grounder.name == f"{checkpoint_dir}+bfloat16+eager+side1"
    with pytest.raises(ValueError, match="max_pooled_side must be >= 1, got 0"):
        FrameGrounder.from_pretrained(checkpoint_dir, "cpu", max_pooled_side=0)
    with pytest.raises(ValueError, match="decode must be auto, pyav, decord or nvdec"):
        FrameGrounder.from_pretrained(checkpoint_dir, "cpu", decode="ffmpeg")


def test_another_tower_is_in_the_models_name(parity_dir, siglip_config, tokenizer, tmp_path):
    checkpoint, siglip = tmp_path / "checkpoint", tmp_path / "siglip"
    shutil.copytree(parity_dir, checkpoint)
    tokenizer.save_pretrained(checkpoint)
    inside = "model.vision_tower.vision_tower."
    weights = load_file(checkpoint / "model.safetensors")
    tower = {k.removeprefix(inside): v for k, v in weights.items() if k.startswith(inside)}
    siglip.mkdir()
    save_file(tower, siglip / "model.safetensors")
    grounder = FrameGrounder.from_pretrained(
        checkpoint, "cpu", vision_config=siglip_config, vision_checkpoint=siglip
    )
    assert grounder.name == f"{checkpoint}+{siglip}"


def test_other_attention_than_sdpa_runs_the_blocks(checkpoint_dir, video):
    fast = FrameGrounder.from_pretrained(checkpoint_dir, "cpu")
    slow = FrameGrounder.from_pretrained(checkpoint_dir, "cpu", attn_implementation="eager")
    assert hasattr(slow.model.tower, "encoder")
    assert not hasattr(fast.model.tower, "encoder")
    wanted = slow.select(video, "where is it").scores
    assert fast.select(video, "where is it").scores == pytest.approx(wanted, abs=1e-5)


def test_a_slow_attention_kernel_is_named_once_with_a_remedy(monkeypatch, caplog):
    attention._warn_once.cache_clear()
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 90100)
    with caplog.at_level(logging.WARNING):
        attention._warn_once("FLASH_ATTENTION", 128)
        attention._warn_once("FLASH_ATTENTION", 128)
    assert len(caplog.records) == 1
    assert "cuDNN is 90100 and must be 91500" in caplog.text
    assert "LD_LIBRARY_PATH" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "groups", "dim"), [(28, 4, 128), (16, 16, 72)])
def test_cudnns_kernel_runs_where_it_should(heads, groups, dim, caplog):
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("only Hopper and later prefer cuDNN")
    query = torch.randn(1, heads, 729, dim, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, groups, 729, dim, device="cuda", dtype=torch.bfloat16)
    device = torch.device("cuda")
    with attention.preferring_fast_attention(device):
        attention.attend(query, key, value)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            attention.attend(query, key, value)
    assert any("cudnn" in event.key for event in seen.key_averages())
    assert "instead of cuDNN" not in caplog.text
    attention._warn_once.cache_clear()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), caplog.at_level(logging.WARNING):
        attention.attend(query, key, value)
    assert "runs as FLASH_ATTENTION instead of cuDNN" in caplog.text


def test_eight_bit_layers_have_sides_that_their_products_take():
    with pytest.raises(ValueError, match=r"multiples of 16, got \[24, 32\]"):
        Fp8Linear(torch.zeros(24, 32))


@pytest.mark.gpu
def test_eight_bit_layers_are_within_a_few_percent():
    weight = torch.randn(256, 512, device="cuda").bfloat16() * 0.05
    bias, x = torch.randn(256, device="cuda").bfloat16(), torch.randn(100, 512, device="cuda")
    x = x.bfloat16()
    from itg_kernels.rows import quantise_rows

    exact = Linear(weight, bias)(x).float()
    rounded = Fp8Linear(weight, bias)(quantise_rows(x)).float()
    assert (rounded - exact).norm() < 0.06 * exact.norm()
    for part, columns in zip(
        Fp8Linear(weight, bias).split(64), (slice(64), slice(64, None)), strict=True
    ):
        torch.testing.assert_close(
            part(quantise_rows(x)).float(), rounded[:, columns], atol=2e-2, rtol=2e-2
        )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["native", "fp8"])
def test_half_precision_scores_close_to_float32(precision, tiny_config):
    # sides in multiples of 16, which 8-bit products need
    text = dataclasses.replace(tiny_config.text, hidden_size=64, num_key_value_heads=4)
    vision = dataclasses.replace(tiny_config.vision, hidden_size=32, intermediate_size=64)
    config = dataclasses.replace(tiny_config, text=text, vision=vision)
    model = FrameGroundingModel(config).cuda().eval()
    frames, ids = sample_of(config, 16)
    with torch.inference_mode():
        wanted = model.score(model.encode_frames(frames), ids)
        model.bfloat16().for_inference(precision=precision)
        got = model.score(model.encode_frames(frames), ids)
    assert got.dtype == torch.float32
    assert (got - wanted).norm() < (0.1 if precision == "native" else 0.5) * wanted.std() * 4
