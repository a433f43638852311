import numpy as np
import pytest
import torch
from itg_kernels.frames import nv12_to_rgb, squash_frames
from itg_kernels.frames_reference import PRECISION_BITS, filter_taps
from PIL import Image

BT601 = (16, 9539, 13075, 16525, -3209, -6660)

SHAPES = [(30, 40), (40, 30), (1, 1), (1, 37), (37, 1), (24, 24), (24, 41), (41, 24), (7, 5)]
LARGE = [(720, 1280), (1080, 608), (101, 77), (384, 250), (2160, 3840)]


def squashed_by_pil(frames, size):
    images = [Image.fromarray(frame.numpy()) for frame in frames.cpu()]
    resized = [image.resize((size, size), Image.Resampling.BICUBIC) for image in images]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resized]))


def make_noise(count, height, width):
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)


def make_kinds(height, width):
    """Noise, black and white, which overshoots as far as the filter goes, and a smooth frame."""
    black_and_white = torch.randint(0, 2, (1, height, width, 3), dtype=torch.uint8) * 255
    y = torch.linspace(0, 6, height)[:, None, None]
    x = torch.linspace(0, 9, width)[:, None]
    smooth = (torch.sin(x + torch.arange(3)) * torch.cos(y - torch.arange(3)) + 1) * 127.5
    return torch.cat([make_noise(1, height, width), black_and_white, smooth[None].byte()])


def assert_same(got, wanted):
    torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("size", [6, 24])
def test_a_squash_is_pils_bicubic_to_the_bit(size, shape, target):
    frames = make_kinds(*shape)
    squashed = squash_frames(frames.to(target.device), size, backend=target.backend)
    assert_same(squashed, squashed_by_pil(frames, size))


@pytest.mark.parametrize("size", [1, 2])
def test_a_squash_to_next_to_nothing_is_pils(size, target):
    frames = make_kinds(9, 13)
    squashed = squash_frames(frames.to(target.device), size, backend=target.backend)
    assert_same(squashed, squashed_by_pil(frames, size))


@pytest.mark.parametrize("shape", LARGE, ids="{0[0]}x{0[1]}".format)
def test_a_squash_of_large_frames_is_pils_bicubic_to_the_bit(shape, target):
    if target.device == "cpu" and (target.tiny or max(shape) > 1280):
        pytest.skip("takes the CPU too long")
    frames = make_kinds(*shape)
    squashed = squash_frames(frames.to(target.device), 384, backend=target.backend)
    assert_same(squashed, squashed_by_pil(frames, 384))


@pytest.mark.parametrize("shape", [(301, 3), (300, 3), (201, 2)], ids="{0[0]}x{0[1]}".format)
def test_frames_of_any_height_are_squashed_in_width_first(shape, target):
    frames = make_noise(2, *shape)
    squashed = squash_frames(frames.to(target.device), 24, backend=target.backend)
    images = [Image.fromarray(frame.numpy()) for frame in frames]
    # one pass a call: there Pillow has no order to choose
    for size in ((24, shape[0]), (24, 24)):
        images = [image.resize(size, Image.Resampling.BICUBIC) for image in images]
    assert_same(squashed, torch.from_numpy(np.stack([np.asarray(image) for image in images])))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_every_frame_of_many_is_squashed_alone(count, target):
    frames = make_noise(count, 19, 33)
    squashed = squash_frames(frames.to(target.device), 13, backend=target.backend)
    assert_same(squashed, squashed_by_pil(frames, 13))


def test_frames_may_be_strided_in_any_way(target):
    whole = make_noise(6, 40, 30).to(target.device)
    for frames in (
        whole[::2],
        whole[:, 3:, 1::2],
        whole.transpose(1, 2),
        whole.flip(2),
        whole[..., [2, 1, 0]],
        whole.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        whole.flatten()[1 : 1 + 40 * 30 * 3].view(1, 40, 30, 3),
    ):
        squashed = squash_frames(frames, 17, backend=target.backend)
        assert_same(squashed, squashed_by_pil(frames, 17))


def test_a_square_of_the_right_size_is_not_copied(target):
    frames = make_noise(2, 24, 24).to(target.device)
    assert squash_frames(frames, 24, backend=target.backend) is frames


def test_no_frames_give_no_frames(target):
    frames = torch.empty(0, 30, 40, 3, dtype=torch.uint8, device=target.device)
    assert squash_frames(frames, 24, backend=target.backend).shape == (0, 24, 24, 3)
    planes = torch.empty(0, 30, 40, dtype=torch.uint8, device=target.device)
    assert nv12_to_rgb(planes, BT601, backend=target.backend).shape == (0, 20, 40, 3)


@pytest.mark.gpu
def test_frames_that_pass_2_gib_are_squashed_to_their_end():
    last = make_noise(1, 720, 1280)
    frames = torch.zeros(800, 720, 1280, 3, dtype=torch.uint8, device="cuda")
    frames[-1] = last[0].cuda()
    squashed = squash_frames(frames, 384, backend="triton")
    assert_same(squashed[-1:], squashed_by_pil(last, 384))
    assert not squashed[:-1].any()


@pytest.mark.parametrize("length", [1, 2, 3, 5, 24, 63, 1280])
@pytest.mark.parametrize("size", [1, 2, 7, 24, 384])
def test_weights_add_up_to_one_and_leave_int32_room(length, size):
    starts, weights = filter_taps(length, size)
    one = 1 << PRECISION_BITS
    assert ((weights.sum(0) - one).abs() <= len(weights)).all()
    assert 255 * int(weights.clamp(min=0).sum(0).max()) + one // 2 < 2**31
    taps = torch.arange(len(weights))[:, None]
    assert (weights[taps + starts >= length] == 0).all()
    assert (starts >= 0).all()


@pytest.mark.parametrize("shape", [(2, 2), (4, 6), (18, 34), (96, 160)], ids=str)
@pytest.mark.parametrize("matrix", [BT601, (0, 8192, 12845, 16234, -3153, -6543)], ids=str)
def test_the_kernels_colours_are_the_oracles(matrix, shape, triton_target):
    height, width = shape
    planes = torch.randint(0, 256, (3, height * 3 // 2, width), dtype=torch.uint8)
    wanted = nv12_to_rgb(planes, matrix, backend="torch")
    got = nv12_to_rgb(planes.to(triton_target.device), matrix, backend="triton")
    assert_same(got, wanted)


def test_colours_are_in_the_order_red_green_blue(target):
    # a bright, red 2 x 2 pixels: V is high
    planes = torch.tensor([[[90, 90], [90, 90], [100, 230]]], dtype=torch.uint8)
    rgb = nv12_to_rgb(planes.to(target.device), BT601, backend=target.backend)
    red, green, blue = rgb[0, 0, 0].tolist()
    assert red > 200 > blue > green
    assert (rgb == rgb[0, 0, 0]).all()


def test_arguments_that_do_not_fit_are_errors():
    frames = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    for bad in (frames.float(), frames[..., :2], frames[0]):
        with pytest.raises(ValueError, match=r"frames must be \[N, H, W, 3\] uint8"):
            squash_frames(bad, 2)
    with pytest.raises(ValueError, match="must be >= 1, got 0, 4 and 4"):
        squash_frames(frames, 0)
    with pytest.raises(ValueError, match="must be >= 1, got 2, 0 and 4"):
        squash_frames(frames[:, :0], 2)
    with pytest.raises(ValueError, match="a frame must hold at most"):
        squash_frames(frames[:, :1, :1].expand(1, 1, 30000, 3), 30000)
    with pytest.raises(ValueError, match=r"nv12 must be \[N, H \* 3 / 2, W\] uint8"):
        nv12_to_rgb(torch.zeros(1, 4, 2, dtype=torch.uint8), BT601)
    with pytest.raises(ValueError, match="matrix must be six integers of 16 bits"):
        nv12_to_rgb(torch.zeros(1, 3, 2, dtype=torch.uint8), (16, 40000, 0, 0, 0, 0))
