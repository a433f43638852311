import shutil
from collections import Counter

import numpy as np
import pytest
from itg_data.errors import VideoError
from itg_data.records import label_frames
from itg_train.dataset import Order, iterate_batches


def test_each_epoch_takes_every_video_once():
    order = Order(num_videos=7, videos_per_step=2, seed=3)
    places = [place for step in range(14) for place in order.places(step)]
    for epoch in range(4):
        assert sorted(places[7 * epoch : 7 * (epoch + 1)]) == list(range(7))
    assert places[:7] != places[7:14]


def test_processes_share_the_sequence_of_a_single_one():
    alone = Order(num_videos=11, videos_per_step=4, seed=1)
    pair = [
        Order(num_videos=11, videos_per_step=2, rank=rank, world_size=2, seed=1)
        for rank in range(2)
    ]
    for step in range(9):
        assert alone.places(step) == [place for order in pair for place in order.places(step)]


def test_another_seed_gives_another_order():
    orders = [Order(num_videos=50, videos_per_step=10, seed=seed).places(0) for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_an_order_over_nothing_is_refused():
    with pytest.raises(ValueError, match="no video to train on"):
        Order(num_videos=0, videos_per_step=1)


def test_batches_that_start_late_are_those_of_a_run_that_did_not_stop(make_dataset):
    dataset = make_dataset()
    order = Order(num_videos=len(dataset), videos_per_step=2, seed=0)
    whole = [[s.video for s in batch.samples] for batch in iterate_batches(dataset, order, 0, 6)]
    late = [[s.video for s in batch.samples] for batch in iterate_batches(dataset, order, 4, 6)]
    assert len(whole) == 6
    assert late == whole[4:]


def test_a_sample_holds_all_questions_of_its_video_with_labels_from_their_spans(make_dataset):
    sample = make_dataset().load(0)
    assert len(sample.records) == len(sample.input_ids) == len(sample.labels) > 1
    assert {record.video for record in sample.records} == {sample.video}
    for record, label in zip(sample.records, sample.labels, strict=True):
        assert np.array_equal(label.numpy() == 1, label_frames(sample.time_s, record.spans))
    assert sample.pixels.shape == (12, 3, 32, 32)


def test_the_cache_never_holds_more_than_it_may(make_dataset):
    num_bytes = make_dataset().load(0).num_bytes
    dataset = make_dataset(cache_bytes=2 * num_bytes)
    first = dataset.load(0)
    assert dataset.load(0) is first
    dataset.load(1)
    dataset.load(2)
    assert dataset.load(0) is not first
    assert make_dataset(cache_bytes=0).load(0).video == first.video


def test_unreadable_videos_are_named_and_dropped_and_no_other_takes_their_place(
    make_dataset, scripted, tmp_path, caplog
):
    root = tmp_path / "set"
    shutil.copytree(scripted[0], root)
    names = make_dataset(root=root).videos
    (root / names[0]).unlink()
    (root / names[2]).write_bytes(b"not a video")
    dataset = make_dataset(root=root)
    dropped = dataset.drop_unreadable()
    assert set(dropped) == {names[0], names[2]}
    assert dataset.videos == [names[1]]
    assert all(names[i] in caplog.text for i in (0, 2))
    counts = Counter(
        place
        for step in range(5)
        for place in Order(num_videos=len(dataset), videos_per_step=1).places(step)
    )
    assert counts == {0: 5}


def test_a_video_that_vanishes_later_stops_the_run_by_name(make_dataset, scripted, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(scripted[0], root)
    dataset = make_dataset(root=root)
    (root / dataset.videos[1]).unlink()
    with pytest.raises(VideoError, match=dataset.videos[1]):
        list(iterate_batches(dataset, Order(num_videos=3, videos_per_step=1), 0, 3))


def test_weights_make_the_mean_over_processes_a_mean_over_questions(make_dataset):
    dataset = make_dataset()
    pair = [Order(num_videos=3, videos_per_step=1, rank=r, world_size=2) for r in range(2)]
    runs = zip(*(iterate_batches(dataset, order, 0, 5) for order in pair), strict=True)
    for batches in runs:
        counts = np.array([len(batch.samples[0].records) for batch in batches])
        weights = np.array([batch.weight for batch in batches])
        assert weights / 2 == pytest.approx(counts / counts.sum())
