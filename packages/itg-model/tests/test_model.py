import dataclasses
import itertools

import pytest
import torch
from itg_model import FrameGroundingModel
from itg_model.model import VIDEO_TOKEN_ID
from torch import Tensor
from transformers import AttentionInterface

SAMPLES = [(3, 4), (16, 9), (7, 1)]  # frames and words of text: ragged, and three grid sides


def make_batch(config, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    size = config.vision.image_size
    pixels = [torch.rand(n, 3, size, size, generator=generator) * 2 - 1 for n, _ in SAMPLES]
    ids = [
        torch.cat(
            [torch.tensor([VIDEO_TOKEN_ID]), torch.randint(1, 300, (m,), generator=generator)]
        )
        for _, m in SAMPLES
    ]
    return pixels, ids


def full_attention_by_hand(model: FrameGroundingModel, embeds: Tensor) -> Tensor:
    """The trunk written out: rotary grouped-query attention of every token to every token."""
    text = model.config.text
    head_dim = text.hidden_size // text.num_attention_heads
    group = text.num_attention_heads // text.num_key_value_heads
    angles = torch.arange(len(embeds)).double()[:, None] / text.rope_theta ** (
        torch.arange(0, head_dim, 2).double() / head_dim
    )
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + text.rms_norm_eps).sqrt() * weight

    def heads(layer: torch.nn.Linear, x: Tensor) -> Tensor:
        return layer(x).view(len(x), -1, head_dim)

    def rotate(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        turned = torch.complex(left, right) * turn[:, None]
        return torch.cat([turned.real, turned.imag], dim=-1)

    x = embeds
    for layer in model.trunk.layers:
        attn, mlp = layer.self_attn, layer.mlp
        y = norm(x, layer.input_layernorm.weight)
        q, k = rotate(heads(attn.q_proj, y)), rotate(heads(attn.k_proj, y))
        k, v = (z.repeat_interleave(group, dim=1) for z in (k, heads(attn.v_proj, y)))
        weights = (torch.einsum("qhd,khd->hqk", q, k) / head_dim**0.5).softmax(-1)
        x = x + attn.o_proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        y = norm(x, layer.post_attention_layernorm.weight)
        gate = mlp.gate_proj(y)
        x = x + mlp.down_proj(gate * gate.sigmoid() * mlp.up_proj(y))
    return x


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_every_token_attends_to_every_token(attention, checkpointing, tiny_config):
    model = FrameGroundingModel(tiny_config, attention)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    embeds = torch.randn(17, 32)
    ours, by_hand = embeds.clone().requires_grad_(), embeds.clone().requires_grad_()
    hidden, truth = model.trunk(ours, [17]), full_attention_by_hand(model, by_hand)
    torch.testing.assert_close(hidden, truth, atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(truth)
    (hidden * weight).sum().backward()
    (truth * weight).sum().backward()
    torch.testing.assert_close(ours.grad, by_hand.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_the_last_token_moves_the_first(checkpointing, tiny_model):
    if checkpointing:
        tiny_model.gradient_checkpointing_enable()
        tiny_model.train()
    embeds = torch.randn(9, 32, requires_grad=True)
    tiny_model.trunk(embeds, [9])[0].sum().backward()
    assert embeds.grad[-1].abs().max() > 0


def test_gradient_checkpointing_recomputes_every_block(tiny_model):
    calls = []
    for layer in [*tiny_model.trunk.layers, *tiny_model.tower.encoder.layers]:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    tiny_model.gradient_checkpointing_enable()
    tiny_model.train()
    pixels, ids = make_batch(tiny_model.config)
    torch.cat(tiny_model(pixels[:1], ids[:1]).logits).sum().backward()
    assert len(calls) == 2 * (2 + 2)


def test_text_is_embedded_once_and_a_video_projected_once_for_all_its_questions(tiny_model):
    calls = []
    for part in (tiny_model.projector, tiny_model.trunk.embed_tokens):
        part.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    pixels, ids = make_batch(tiny_model.config)
    first, second = (tiny_model.encode_frames(x) for x in pixels[:2])
    tiny_model.score_batch([first, second, first], ids)
    num_text = sum(len(row) - 1 for row in ids)
    assert calls == [num_text, first[..., 0].numel() + second[..., 0].numel()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_gives_what_its_samples_give_one_by_one(attention, tiny_config):
    model = FrameGroundingModel(tiny_config, attention).eval()
    pixels, ids = make_batch(tiny_config)
    with torch.no_grad():
        batch = model(pixels, ids).logits
        for x, row, together in zip(pixels, ids, batch, strict=True):
            alone = model([x], [row]).logits[0]
            assert alone.std() > 0.01
            torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
# flex attention compiles, and torch's compiler itself uses what torch deprecates
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flex_attention_gives_what_sdpa_gives(tiny_config):
    # its kernel takes heads of 16 and more
    config = dataclasses.replace(
        tiny_config,
        text=dataclasses.replace(tiny_config.text, num_attention_heads=2, num_key_value_heads=1),
        vision=dataclasses.replace(tiny_config.vision, num_attention_heads=1),
    )
    sdpa = FrameGroundingModel(config).eval().cuda()
    flex = FrameGroundingModel(config, "flex_attention").eval().cuda()
    flex.load_state_dict(sdpa.state_dict())
    pixels, ids = make_batch(config)
    with torch.no_grad():
        wanted, got = torch.cat(sdpa(pixels, ids).logits), torch.cat(flex(pixels, ids).logits)
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=1e-3)


def test_flash_attention_is_told_where_samples_end_and_that_nothing_is_causal(
    tiny_config, monkeypatch
):
    seen = []

    def flash(module, query, key, value, attention_mask, **kwargs):
        seen.append((attention_mask, kwargs))
        return torch.zeros_like(query.transpose(1, 2)), None

    model = FrameGroundingModel(tiny_config).eval()
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", flash)
    model.trunk.config._attn_implementation = "flash_attention_2"
    model.trunk(torch.randn(12, 32), [5, 4, 3])
    model.trunk(torch.randn(12, 32), [12])
    mask, kwargs = seen[0]
    assert mask is None
    assert kwargs["is_causal"] is False
    assert kwargs["cu_seq_lens_q"].tolist() == kwargs["cu_seq_lens_k"].tolist() == [0, 5, 9, 12]
    assert kwargs["cu_seq_lens_q"].dtype == torch.int32
    assert kwargs["max_length_q"] == kwargs["max_length_k"] == 5
    assert seen[-1][1]["is_causal"] is False
    assert "cu_seq_lens_q" not in seen[-1][1]


@pytest.mark.parametrize("frame_chunk", [1, 3, 16, 100])
def test_the_chunk_size_changes_nothing(frame_chunk, tiny_model):
    pixels, ids = make_batch(tiny_model.config)
    with torch.no_grad():
        whole = tiny_model(pixels, ids, frame_chunk=1000).logits
        chunked = tiny_model(pixels, ids, frame_chunk=frame_chunk).logits
    torch.testing.assert_close(torch.cat(chunked), torch.cat(whole))


def test_the_tower_never_sees_more_frames_than_a_chunk(tiny_model):
    sizes = []
    tiny_model.tower.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    tiny_model.encode_frames(torch.zeros(8, 3, 24, 24), frame_chunk=3)
    assert sizes == [3, 3, 2]


def test_frames_encoded_in_parts_score_as_those_encoded_at_once(tiny_model):
    pixels, ids = make_batch(tiny_model.config)
    with torch.no_grad():
        side = tiny_model.pooled_side(16)
        parts = [tiny_model.encode_frames(x, side=side) for x in pixels[1].split(5)]
        streamed = tiny_model.score(torch.cat(parts), ids[1])
        whole = tiny_model(pixels[1:2], ids[1:2]).logits[0]
    torch.testing.assert_close(streamed, whole)


def test_each_sample_is_pooled_to_the_side_asked_for(tiny_model):
    pixels, ids = make_batch(tiny_model.config)
    with torch.no_grad():
        drawn = tiny_model(pixels, ids, pooled_sides=[1, 2, 3]).logits
        for x, row, side, logits in zip(pixels, ids, [1, 2, 3], drawn, strict=True):
            features = tiny_model.encode_frames(x, side=side)
            assert features.shape == (len(x), side * side, 16)
            torch.testing.assert_close(
                logits, tiny_model.score(features, row), atol=1e-5, rtol=1e-5
            )


def test_blocks_of_the_tower_that_are_not_read_are_not_built(tiny_model):
    names = [name for name, _ in tiny_model.named_parameters()]
    assert len(tiny_model.tower.encoder.layers) == 2
    assert not [n for n in names if "post_layernorm" in n or n.startswith("tower.head")]


def test_the_tower_learns_unless_its_parameters_say_no(tiny_model):
    pixels, ids = make_batch(tiny_model.config)
    torch.cat(tiny_model(pixels, ids).logits).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in tiny_model.tower.parameters())
    tiny_model.zero_grad()
    tiny_model.tower.requires_grad_(False)
    torch.cat(tiny_model(pixels, ids).logits).sum().backward()
    assert all(p.grad is None for p in tiny_model.tower.parameters())
    assert tiny_model.head.weight.grad is not None


def test_text_beyond_the_maximum_length_is_cut_from_the_right(tiny_model):
    features = torch.randn(7, 9, 16)  # 63 image tokens, so 33 of text fit in 96
    ids = torch.cat([torch.tensor([5, VIDEO_TOKEN_ID]), torch.arange(100, 180)])
    with torch.no_grad():
        long = tiny_model.score(features, ids)
        cut = tiny_model.score(features, ids[: 2 + 32])
        shorter = tiny_model.score(features, ids[: 2 + 31])
    assert torch.equal(long, cut)
    assert not torch.equal(long, shorter)


def test_image_tokens_beyond_the_maximum_length_are_an_error(tiny_model):
    ids = torch.cat([torch.arange(1, 35), torch.tensor([VIDEO_TOKEN_ID])])
    with pytest.raises(ValueError, match=r"63 image tokens after 34 of text .* \(96\)"):
        tiny_model.score(torch.randn(7, 9, 16), ids)


@pytest.mark.parametrize(("ids", "times"), [([1, 2], 0), ([-200, 1, -200], 2)])
def test_a_prompt_with_no_video_or_several_is_an_error(ids, times, tiny_model):
    with pytest.raises(ValueError, match=rf"exactly once per sample, got it {times} times"):
        tiny_model([torch.zeros(2, 3, 24, 24)], [torch.tensor(ids)])


@pytest.mark.parametrize(
    "shape",
    [(3, 24, 24), (2, 3, 24, 25), (2, 1, 24, 24), (0, 3, 24, 24), (1, 2, 3, 24, 24)],
    ids=str,
)
def test_pixels_of_the_wrong_shape_are_an_error_that_names_it(shape, tiny_model):
    with pytest.raises(ValueError, match=r"\[T, 3, 24, 24\] per video with T >= 1, got \["):
        tiny_model([torch.zeros(shape)], [torch.tensor([-200, 1])])


def test_more_frames_than_image_tokens_are_an_error(tiny_model):
    with pytest.raises(
        ValueError, match=r"num_frames must be in 1..vision_token_num \(64\), got 65"
    ):
        tiny_model([torch.zeros(65, 3, 24, 24)], [torch.tensor([-200, 1])])


def test_lists_of_different_lengths_are_an_error(tiny_model):
    with pytest.raises(ValueError, match="equally long, got 1, 2 and 1"):
        tiny_model([torch.zeros(1, 3, 24, 24)], [torch.tensor([-200])] * 2)


def test_an_unknown_attention_implementation_is_an_error(tiny_config):
    with pytest.raises(ValueError, match="attn_implementation must be one of"):
        FrameGroundingModel(tiny_config, "paged|sdpa")


def test_an_empty_batch_gives_no_logits(tiny_model):
    assert tiny_model([], []).logits == []


def test_a_model_cast_to_bfloat16_keeps_far_positions_apart(tiny_model):
    exact = tiny_model.trunk._rotary([6000], torch.zeros(1))
    cast = tiny_model.bfloat16().trunk._rotary([6000], torch.zeros(1, dtype=torch.bfloat16))
    for a, b in itertools.zip_longest(exact, cast):
        torch.testing.assert_close(b.float(), a, atol=0.005, rtol=0)


def test_a_model_in_bfloat16_scores_close_to_float32(tiny_model):
    pixels, ids = make_batch(tiny_model.config)
    with torch.no_grad():
        exact = torch.cat(tiny_model(pixels, ids).logits)
        logits = tiny_model.bfloat16()(pixels, ids).logits
    assert all(x.dtype == torch.float32 for x in logits)
    assert (torch.cat(logits) - exact).abs().max() < 0.1 * exact.std() + 0.05


def test_a_causal_trunk_hides_what_comes_later(tiny_model):
    width = tiny_model.config.text.hidden_size
    embeds = torch.randn(9, width)
    changed = embeds.clone()
    changed[3] += 1
    with torch.no_grad():
        before = tiny_model.trunk(embeds, [5, 4], is_causal=True)
        after = tiny_model.trunk(changed, [5, 4], is_causal=True)
        both_ways = tiny_model.trunk(changed, [5, 4]) - tiny_model.trunk(embeds, [5, 4])
    moved = (before != after).any(dim=1).tolist()
    assert moved == [False] * 3 + [True] * 2 + [False] * 4
    assert both_ways.abs().amax(dim=1)[:5].min() > 0
