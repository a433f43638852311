"""The numbers of the reference implementation; `data/parity/README.md` says how they were made."""

import json
from pathlib import Path

import pytest
import torch
from itg_kernels import frame_bce_loss
from itg_model.config import FrameGroundingConfig
from itg_model.model import VIDEO_TOKEN_ID
from itg_model.processing import preprocess_frames
from torch import Tensor

PARITY = Path(__file__).parent / "data" / "parity"
CASES = ["single_T5", "single_T12", "pad_token_in_prompt", "batch_mixed", "loss"]
PAD_ID = 0


def read_case(tensors: dict[str, Tensor], name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Pixels and ids of a case; ids without the pad id, as the prompt builder leaves them out."""
    ids = [row[row != PAD_ID] for row in tensors[f"{name}.input_ids"]]
    frames = [tensors[f"{name}.frames.{b}"].numpy() for b in range(len(ids))]
    return [preprocess_frames(f, image_size=98) for f in frames], ids


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_reference(name, parity_model, parity_tensors):
    pixels, ids = read_case(parity_tensors, name)
    with torch.no_grad():
        logits = parity_model(pixel_values=pixels, input_ids=ids).logits
    for b, sample in enumerate(logits):
        wanted = parity_tensors[f"{name}.logits.{b}"]
        assert sample.dtype == torch.float32
        torch.testing.assert_close(sample, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_embeddings_and_last_states_are_those_of_the_reference(name, parity_model, parity_tensors):
    pixels, ids = read_case(parity_tensors, name)
    with torch.no_grad():
        for b, (x, row) in enumerate(zip(pixels, ids, strict=True)):
            features = parity_model.encode_frames(x)
            ((embeds, first_row),) = parity_model.embed_samples([features], [row])
            states = parity_model.trunk.norm(parity_model.trunk(embeds, [len(embeds)]))
            types = parity_tensors[f"{name}.token_types"][b]
            wanted = parity_tensors[f"{name}.inputs_embeds"][b][: len(embeds)]
            torch.testing.assert_close(embeds, wanted, atol=1e-5, rtol=0)
            wanted = parity_tensors[f"{name}.last_hidden"][b][: len(embeds)]
            torch.testing.assert_close(states, wanted, atol=1e-4, rtol=0)
            assert types[first_row] == 3
            assert int((types != 4).sum()) == len(embeds)


def test_pad_ids_inside_the_prompt_were_really_there(parity_tensors):
    ids = parity_tensors["pad_token_in_prompt.input_ids"][0]
    assert int((ids == PAD_ID).sum()) == 2
    assert int((ids == VIDEO_TOKEN_ID).sum()) == 1


def test_pixels_are_those_of_the_reference_bit_for_bit(parity_tensors):
    pixels = preprocess_frames(parity_tensors["single_T5.frames.0"].numpy(), image_size=98)
    assert torch.equal(pixels, parity_tensors["single_T5.pixel_values.0"])


def test_loss_and_gradients_are_those_of_the_reference(parity_model, parity_tensors):
    pixels, ids = read_case(parity_tensors, "loss")
    logits = torch.cat(parity_model(pixel_values=pixels, input_ids=ids).logits)
    labels = torch.cat([parity_tensors["loss.labels.0"], parity_tensors["loss.labels.1"]])
    loss = frame_bce_loss(logits, labels)
    assert abs(loss.item() - parity_tensors["loss.value"].item()) < 1e-5
    loss.backward()
    ours = {
        "model.layers.0.self_attn.q_proj.weight": "trunk.layers.0.self_attn.q_proj.weight",
        "model.layers.2.mlp.down_proj.weight": "trunk.layers.2.mlp.down_proj.weight",
        "model.mm_projector.out_projection.0.weight": "projector.0.weight",
        "model.mm_projector.out_projection.2.bias": "projector.2.bias",
        "model.norm.weight": "trunk.norm.weight",
        "out_proj.weight": "head.weight",
        "out_proj.bias": "head.bias",
    }
    named = dict(parity_model.named_parameters())
    checked = [key for key in parity_tensors if key.startswith("loss.grad.")]
    assert len(checked) == len(ours)
    for key in checked:
        gradient = named[ours[key.removeprefix("loss.grad.")]].grad
        torch.testing.assert_close(gradient, parity_tensors[key], atol=1e-5, rtol=1e-3)


def test_pooled_sides_are_those_of_the_reference():
    sides = json.loads((PARITY / "pool_side_by_frames_16384_27.json").read_text())
    config = FrameGroundingConfig()
    assert {n: config.pooled_side(int(n)) for n in sides} == sides


@pytest.mark.parametrize("name", CASES)
def test_each_case_is_pooled_to_the_side_of_the_reference(name, parity_model, parity_facts):
    case = parity_facts["cases"][name]
    assert [parity_model.pooled_side(n) for n in case["T"]] == case["HW"]
