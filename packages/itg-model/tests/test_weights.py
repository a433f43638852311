import json
import os
import re
from pathlib import Path

import pytest
import torch
from itg_model import CheckpointError, FrameGroundingModel, weights
from itg_model.config import FrameGroundingConfig, read_config
from itg_model.model import VIDEO_TOKEN_ID
from safetensors.torch import load_file, save_file

TOWER = "model.vision_tower.vision_tower.vision_model."


@pytest.fixture
def published(parity_dir) -> dict[str, torch.Tensor]:
    return load_file(parity_dir / "model.safetensors")


@pytest.fixture
def checkpoint(parity_dir, tmp_path):
    """Writes a variant of the published tiny checkpoint into a fresh directory."""

    def write(tensors, name="model.safetensors") -> Path:
        (tmp_path / "config.json").write_bytes((parity_dir / "config.json").read_bytes())
        save_file(tensors, tmp_path / name)
        return tmp_path

    return write


@pytest.fixture
def logits(siglip_config):
    """Loads a directory and scores the same few frames with it."""

    def score(directory, **options) -> torch.Tensor:
        if json.loads((directory / "config.json").read_text())["model_type"] == "eagle_QwenG":
            options["vision_config"] = siglip_config
        model = FrameGroundingModel.from_pretrained(directory, **options)
        pixels = torch.linspace(-1, 1, 5 * 3 * 98 * 98).view(5, 3, 98, 98)
        with torch.no_grad():
            return model([pixels], [torch.tensor([VIDEO_TOKEN_ID, 7, 8, 9])]).logits[0]

    return score


def write_shards(directory: Path, tensors, names=("a.safetensors", "b.safetensors")) -> None:
    keys = sorted(tensors)
    halves = {names[0]: keys[::2], names[1]: keys[1::2]}
    for name, half in halves.items():
        save_file({k: tensors[k] for k in half}, directory / name)
    weight_map = {k: name for name, half in halves.items() for k in half}
    (directory / weights.INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def test_a_saved_model_loads_and_scores_the_same(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "new" / "dir")
    loaded = FrameGroundingModel.from_pretrained(tmp_path / "new" / "dir")
    pixels, ids = torch.rand(4, 3, 24, 24), torch.tensor([VIDEO_TOKEN_ID, 3, 4])
    with torch.no_grad():
        assert torch.equal(loaded([pixels], [ids]).logits[0], tiny_model([pixels], [ids]).logits[0])
    assert loaded.config == tiny_model.config
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())


def test_a_published_checkpoint_saved_in_our_form_scores_the_same(
    parity_dir, logits, tmp_path, siglip_config
):
    FrameGroundingModel.from_pretrained(parity_dir, vision_config=siglip_config).save_pretrained(
        tmp_path
    )
    assert torch.equal(logits(tmp_path), logits(parity_dir))


def test_shards_load_as_one_file_does(checkpoint, published, parity_dir, logits):
    directory = checkpoint(published)
    (directory / "model.safetensors").unlink()
    write_shards(directory, published)
    assert torch.equal(logits(directory), logits(parity_dir))


def test_a_language_head_and_other_parts_that_score_nothing_are_ignored(
    checkpoint, published, parity_dir, logits
):
    extra = {"lm_head.weight": torch.zeros(400, 64), "model.rotary_emb.inv_freq": torch.zeros(8)}
    assert torch.equal(logits(checkpoint(published | extra)), logits(parity_dir))


def test_parts_of_the_tower_that_score_nothing_may_be_absent(
    checkpoint, published, parity_dir, logits
):
    unused = re.compile(re.escape(TOWER) + r"(head|post_layernorm|encoder\.layers\.3)\.")
    kept = {k: v for k, v in published.items() if not unused.match(k)}
    assert len(kept) == len(published) - 29
    assert torch.equal(logits(checkpoint(kept)), logits(parity_dir))


def test_the_tower_comes_from_a_siglip_checkpoint_where_there_is_none(
    checkpoint, published, parity_dir, logits, tmp_path_factory
):
    siglip = tmp_path_factory.mktemp("siglip")
    tower = {k.removeprefix(TOWER): v for k, v in published.items() if k.startswith(TOWER)}
    whole = {f"vision_model.{k}": v for k, v in tower.items()} | {"logit_scale": torch.ones(1)}
    save_file(whole, siglip / "model.safetensors")
    directory = checkpoint({k: v for k, v in published.items() if not k.startswith(TOWER)})
    with pytest.raises(CheckpointError, match="holds no vision tower; pass vision_checkpoint="):
        logits(directory)
    assert torch.equal(logits(directory, vision_checkpoint=siglip), logits(parity_dir))


def test_a_siglip_checkpoint_that_is_given_wins_over_the_tower_inside(
    parity_dir, published, logits, tmp_path
):
    tower = {k.removeprefix(TOWER): v * 2 for k, v in published.items() if k.startswith(TOWER)}
    save_file({f"vision_model.{k}": v for k, v in tower.items()}, tmp_path / "model.safetensors")
    assert not torch.equal(logits(parity_dir, vision_checkpoint=tmp_path), logits(parity_dir))


def test_a_siglip_checkpoint_without_a_tower_is_named(parity_dir, logits, tmp_path):
    save_file({"text_model.x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: holds no SigLIP vision tower"):
        logits(parity_dir, vision_checkpoint=tmp_path)


def test_every_missing_misshapen_and_unexpected_tensor_is_named(checkpoint, published, logits):
    broken = dict(published)
    del broken["model.layers.1.self_attn.k_proj.bias"]
    del broken["out_proj.bias"]
    broken["model.norm.weight"] = torch.ones(63)
    broken["model.layers.7.mlp.up_proj.weight"] = torch.ones(2)
    with pytest.raises(CheckpointError) as caught:
        logits(checkpoint(broken))
    message = str(caught.value)
    assert "missing trunk.layers.1.self_attn.k_proj.bias" in message
    assert "missing head.bias" in message
    assert "model.norm.weight must be [64], got [63]" in message
    assert "unexpected model.layers.7.mlp.up_proj.weight" in message
    assert "\n" not in message


def test_a_message_about_very_many_tensors_counts_the_rest(checkpoint, published, logits):
    head_only = {k: v for k, v in published.items() if k.startswith((TOWER, "out_proj"))}
    with pytest.raises(CheckpointError, match=r"; and \d+ more$"):
        logits(checkpoint(head_only))


def test_a_tensor_under_two_names_is_named(checkpoint, published, logits):
    with pytest.raises(CheckpointError, match="are the same tensor"):
        logits(checkpoint(published | {"head.bias": torch.zeros(1)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_parameters_come_in_the_type_asked_for(dtype, parity_dir, siglip_config):
    model = FrameGroundingModel.from_pretrained(parity_dir, dtype, siglip_config)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not [
        name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta
    ]


def test_half_precision_files_load_into_float32(checkpoint, published, parity_dir, logits):
    directory = checkpoint({k: v.bfloat16() for k, v in published.items()})
    torch.testing.assert_close(logits(directory), logits(parity_dir), atol=0.1, rtol=0.1)


def test_loaded_parameters_do_not_change_with_the_file(checkpoint, published, siglip_config):
    directory = checkpoint(published)
    model = FrameGroundingModel.from_pretrained(directory, vision_config=siglip_config)
    path = directory / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(model.trunk.embed_tokens.weight, published["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_refused_without_being_opened(name, checkpoint, published, logits):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(directory / "boom"),))

    directory = checkpoint(published)
    (directory / "model.safetensors").unlink()
    torch.save({"x": Bomb()}, directory / name)
    with pytest.raises(CheckpointError, match=f"holds {name} but no safetensors; pickles are not"):
        logits(directory)
    assert not (directory / "boom").exists()


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "sub/a.safetensors", "a.bin", 3]
)
def test_an_index_that_points_elsewhere_is_refused(name, checkpoint, published, logits):
    directory = checkpoint(published)
    (directory / weights.INDEX_NAME).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match=r"plain \*\.safetensors name, got"):
        logits(directory)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": []}}'])
def test_a_broken_index_is_named(text, checkpoint, published, logits):
    directory = checkpoint(published)
    (directory / weights.INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=f"{weights.INDEX_NAME}: not an index"):
        logits(directory)


def test_a_missing_shard_is_named(checkpoint, published, logits):
    directory = checkpoint(published)
    write_shards(directory, published)
    (directory / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard b\.safetensors is missing"):
        logits(directory)


def test_a_truncated_file_is_named(checkpoint, published, logits):
    directory = checkpoint(published)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read as safetensors"):
        logits(directory)


def test_a_directory_without_weights_is_named(checkpoint, published, logits):
    directory = checkpoint(published)
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        logits(directory)


def names_in(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


def test_a_large_model_is_written_in_shards_that_load_again(tiny_model, tmp_path):
    weights.write_checkpoint(tmp_path, tiny_model.config, tiny_model.state_dict(), 20_000)
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    loaded = FrameGroundingModel.from_pretrained(tmp_path)
    for ours, theirs in zip(loaded.parameters(), tiny_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_saving_again_leaves_nothing_of_the_checkpoint_before(tiny_model, tmp_path):
    state = tiny_model.state_dict()
    for max_bytes in (20_000, 30_000, 10**9, 10**9, 20_000):
        state = {k: v + 1 for k, v in state.items()}
        weights.write_checkpoint(tmp_path, tiny_model.config, state, max_bytes)
        loaded = FrameGroundingModel.from_pretrained(tmp_path)
        assert torch.equal(loaded.head.bias, state["head.bias"])
        total = sum(v.numel() * 4 for v in state.values())
        held = sum(p.stat().st_size for p in tmp_path.glob("*.safetensors"))
        assert total < held < 1.5 * total
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize(("max_bytes", "failing_file"), [(20_000, 2), (10**9, 1)])
def test_a_save_that_fails_half_way_leaves_the_old_checkpoint(
    max_bytes, failing_file, tiny_model, tmp_path, monkeypatch
):
    tiny_model.save_pretrained(tmp_path)
    old = tiny_model.head.weight.clone()
    calls = []

    def fail_in_the_middle(tensors, path, metadata):
        calls.append(path)
        Path(path).write_bytes(b"half")
        if len(calls) == failing_file:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(weights, "save_file", fail_in_the_middle)
    state = {k: v + 1 for k, v in tiny_model.state_dict().items()}
    with pytest.raises(OSError, match="No space left"):
        weights.write_checkpoint(tmp_path, tiny_model.config, state, max_bytes)
    assert torch.equal(FrameGroundingModel.from_pretrained(tmp_path).head.weight, old)
    assert not [name for name in names_in(tmp_path) if name.endswith(".part")]


def test_what_was_published_is_written_again_under_the_same_names(
    parity_dir, published, siglip_config, tmp_path, logits
):
    model = FrameGroundingModel.from_pretrained(parity_dir, vision_config=siglip_config)
    weights.write_checkpoint(tmp_path, model.config, model.state_dict(), published=True)
    written = load_file(tmp_path / "model.safetensors")
    # the last block, the final norm and the pooling head of the tower have no part in a score
    last = siglip_config["num_hidden_layers"] - 1
    unused = re.compile(rf"{re.escape(TOWER)}(post_layernorm|head|encoder\.layers\.{last})\.")
    assert set(written) == {name for name in published if not unused.match(name)}
    assert all(torch.equal(tensor, published[name]) for name, tensor in written.items())
    assert torch.equal(logits(tmp_path), logits(parity_dir))


def test_a_published_config_says_what_the_references_own_says(parity_dir, siglip_config, tmp_path):
    model = FrameGroundingModel.from_pretrained(parity_dir, vision_config=siglip_config)
    found = model.config.to_published_json(torch.float32)
    theirs = json.loads((parity_dir / "config.json").read_text())
    # the tower there has a name that nobody knows, and the type of the weights none
    unequal = {"mm_vision_tower", "max_position_embeddings", "torch_dtype"}
    names = set(theirs) & set(found) - unequal
    assert len(names) > 20
    assert {name: found[name] for name in names} == {name: theirs[name] for name in names}
    whole = FrameGroundingConfig()
    assert FrameGroundingConfig.from_json(whole.to_published_json(torch.bfloat16)) == whole


def test_what_a_start_may_lack_is_left_out_and_what_it_must_have_is_named(
    published, checkpoint, siglip_config
):
    cut = {name: tensor for name, tensor in published.items() if not name.startswith("out_proj")}
    directory = checkpoint(cut)
    model = FrameGroundingModel(read_config(directory, siglip_config))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    given = (directory, shapes, torch.float32, torch.device("cpu"))
    state = weights.read_weights(*given, may_lack=("head.",))
    assert set(shapes) - set(state) == {"head.weight", "head.bias"}
    with pytest.raises(CheckpointError, match=r"missing head\.weight"):
        weights.read_weights(*given)
