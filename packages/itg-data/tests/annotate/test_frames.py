import asyncio
import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from itg_data.annotate.features import THUMBNAILS, load_features
from itg_data.annotate.frames import Decoders, PictureConfig, count_clips, open_pictures
from itg_data.errors import VideoError
from itg_data.video import open_video
from PIL import Image

FOUR_A_CLIP = PictureConfig(per_clip=4)


def shown(path, tmp_path, use, config=FOUR_A_CLIP):
    """Opens a video's pictures, uses them and closes them."""

    async def main():
        with ThreadPoolExecutor(1) as executor:
            decoders = Decoders(executor, 1)
            async with await open_pictures(path, config, decoders, tmp_path) as video:
                return await use(video)

    return asyncio.run(main())


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), dtype=np.int16)


def test_a_clip_is_shown_in_spread_frames_and_a_second_in_its_first(videos, tmp_path):
    async def use(video):
        clip, seconds = video.of_clip(1), video.of_seconds([0, 6, 11])
        await clip.wait()
        await seconds.wait()
        return clip.read(), seconds.read(), [video.source_idx_of(s) for s in (0, 6, 11)]

    of_clip, of_seconds, second_idx = shown(videos / "long.mp4", tmp_path, use)
    assert second_idx == [0, 150, 275]
    with open_video(videos / "long.mp4") as video:
        truth = video.read([125, 150, 188, 225, 0, 150, 275]).frames.astype(np.int16)
    # of 5, 6.25, 7.5 and 8.75 s two are near a full second; 7.5 s falls between 187 and 188
    for jpeg, frame in zip([*of_clip, *of_seconds], truth, strict=True):
        assert np.abs(pixels(jpeg) - frame).mean() < 12


def test_a_video_has_as_many_clips_and_seconds_as_it_lasts(videos, tmp_path):
    async def use(video):
        return video.num_clips, video.num_seconds, video.duration_s

    assert shown(videos / "long.mp4", tmp_path, use) == (3, 12, 12.0)
    assert shown(videos / "short.mp4", tmp_path, use) == (1, 2, 2.0)
    assert [count_clips(s) for s in (0.04, 5.0, 5.01, 10.0)] == [1, 1, 2, 2]


def test_pictures_keep_their_shape_and_are_never_enlarged(videos, tmp_path):
    async def use(video):
        await video.of_clip(0).wait()
        return Image.open(io.BytesIO(video.of_clip(0).read()[0])).size

    assert shown(videos / "long.mp4", tmp_path, use, PictureConfig(image_size=48)) == (48, 32)
    assert shown(videos / "long.mp4", tmp_path, use, PictureConfig(image_size=448)) == (96, 64)


def test_a_picture_is_named_by_all_that_decides_its_pixels(videos, tmp_path):
    async def use(video):
        return video.of_clip(0).names

    copy = tmp_path / "copy.mp4"
    copy.write_bytes((videos / "long.mp4").read_bytes())
    names = shown(videos / "long.mp4", tmp_path, use)
    assert shown(copy, tmp_path, use) == names
    assert len(set(names)) == 4
    assert not set(names) & set(shown(copy, tmp_path, use, PictureConfig(image_size=40)))
    assert not set(names) & set(shown(videos / "short.mp4", tmp_path, use))


def test_seconds_are_told_by_the_clock_at_odd_and_changing_rates(encode_video, tmp_path):
    # 2 frames a second, then one frame that stays for 3 s, then 10 frames a second
    times_ms = [0, 500, 1000, 1500, 2000, *range(5000, 7000, 100)]
    path = encode_video(tmp_path / "odd.mp4", num_frames=len(times_ms), times_ms=times_ms)

    async def use(video):
        return [video.source_idx_of(second) for second in range(video.num_seconds)]

    # in seconds 3 and 4 the frame that came at 2 s is on screen; the last one may stay beyond 7 s
    assert shown(path, tmp_path, use) == [0, 2, 4, 4, 4, 5, 15, 24]

    async def use_beginnings(video):
        return [video.add_beginnings(seconds) for seconds in ((0, 1), (3,), (4, 5), (7,))]

    assert shown(path, tmp_path, use_beginnings) == [(0, 1), (2, 3), (2, 4, 5), (6, 7)]


def test_a_pass_that_is_given_up_ends_without_reading_on(videos, tmp_path):
    async def use(video):
        waiting = asyncio.create_task(video.of_clip(0).wait())
        await asyncio.sleep(0)
        waiting.cancel()
        return await asyncio.gather(waiting, return_exceptions=True)

    (ended,) = shown(videos / "long.mp4", tmp_path, use)
    assert isinstance(ended, asyncio.CancelledError)


def test_a_disk_without_room_fails_all_who_wait(videos, tmp_path, monkeypatch):
    async def use(video):
        monkeypatch.setattr(video, "_take", lambda *_: os.write(os.open("/dev/full", 1), b"x"))
        waits = (video.of_clip(clip).wait() for clip in range(3))
        return await asyncio.gather(*waits, return_exceptions=True)

    failures = shown(videos / "long.mp4", tmp_path, use)
    assert [type(failure) for failure in failures] == [OSError] * 3


def test_no_video_is_one_error(tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        shown(tmp_path / "none.mp4", tmp_path, None)


def test_thumbnails_tell_pictures_apart_and_overlook_noise():
    thumbnails = load_features(THUMBNAILS)
    assert thumbnails is not None
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((16, 16, 1)))
    other = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((16, 16, 1)))
    noisy = scene + rng.normal(0, 10, scene.shape)
    grey = np.full_like(scene, 128)

    def jpeg(image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(buffer, "JPEG")
        return buffer.getvalue()

    features = thumbnails([jpeg(image) for image in (scene, noisy, other, grey)])
    assert features.shape == (4, 576)
    assert features[0] @ features[1] > 0.97
    assert features[0] @ features[2] < 0.90
    assert np.isfinite(features).all()


def test_a_clip_that_comes_to_be_wanted_while_the_file_is_closed_is_decoded(
    videos, tmp_path, monkeypatch
):
    async def use(video):
        close = video._close_reader

        async def close_slowly():
            await asyncio.sleep(0.05)
            await close()

        monkeypatch.setattr(video, "_close_reader", close_slowly)
        await video.of_clip(0).wait()
        await asyncio.wait_for(video.of_clip(1).wait(), timeout=20)
        return video.of_clip(1).read()

    assert len(shown(videos / "long.mp4", tmp_path, use)) == 4
