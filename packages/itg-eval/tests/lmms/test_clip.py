import av
import numpy as np
import pytest
from decord import VideoReader
from itg_eval.lmms.clip import write_clip
from itg_eval.lmms.frames import Frames
from itg_eval.lmms.show import Show
from PIL import Image


def middles(num_frames, k):
    """How InternVL samples a file: the middles of k parts of first to last."""
    part = (num_frames - 1) / k
    return [int(part / 2 + np.round(part * i)) for i in range(k)]


SAMPLERS = {
    "linspace": lambda n, k: np.linspace(0, n - 1, k, dtype=int),
    "rounded linspace": lambda n, k: np.linspace(0, n - 1, k).round().astype(int),
    "middles": middles,
    "linspace and the last": lambda n, k: np.linspace(0, n, k, endpoint=False, dtype=int),
}


def make_frames(count, size=(66, 47)):
    """Random pictures: nothing in one predicts the next."""
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return Frames(
        images=[Image.fromarray(image) for image in pixels], times_s=tuple(range(count))
    ), pixels


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("k", [1, 2, 8, 32, 64])
def test_common_ways_of_taking_k_frames_give_each_selected_frame_once(k, sampler, tmp_path):
    frames, pixels = make_frames(k, size=(66, 32))  # decord fails on files 48 wide
    write_clip(tmp_path / "clip.mp4", frames)
    reader = VideoReader(str(tmp_path / "clip.mp4"))
    assert len(reader) == 3 * k
    taken = reader.get_batch(list(SAMPLERS[sampler](len(reader), k))).asnumpy()
    error = np.abs(taken.astype(int)[:, None] - pixels.astype(int)[None]).mean((2, 3, 4))
    assert error.argmin(1).tolist() == list(range(k))


def test_frames_of_any_size_come_back_with_no_loss_but_the_colour_conversion(tmp_path):
    frames, pixels = make_frames(5)
    write_clip(tmp_path / "clip.mp4", frames)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        decoded = list(container.decode(video=0))
    assert all(frame.key_frame for frame in decoded), "each frame can be read by itself"
    shown = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    error = np.abs(shown.astype(int) - np.repeat(pixels, 3, 0))
    assert error.mean() < 1
    assert error.max() <= 4


def test_no_more_clips_lie_on_disk_than_were_allowed_and_none_once_the_host_is_gone():
    show = Show("clip", with_times=True, num_clips=2)
    frames, _ = make_frames(1)
    paths = [show.to_visuals(frames)[0] for _ in range(4)]
    folder = show._folder
    assert sorted(str(path) for path in folder.iterdir()) == sorted(paths[2:])
    del show
    assert not folder.exists()
