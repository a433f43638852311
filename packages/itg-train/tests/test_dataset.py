import dataclasses
import shutil

import numpy as np
import pytest
import torch
from itg_data.errors import VideoError
from itg_data.records import TimeSpan, label_frames
from itg_train.dataset import VideoDataset
from itg_train.features import FeatureStore, StoredFeatures, fingerprint_tower
from itg_train.index import index_videos
from PIL import Image


def test_a_sample_holds_all_questions_of_its_video_with_labels_from_their_spans(make_dataset):
    sample = make_dataset().load(0)
    assert len(sample.records) == len(sample.input_ids) == len(sample.labels) > 1
    assert {record.video for record in sample.records} == {sample.video}
    for record, label in zip(sample.records, sample.labels, strict=True):
        assert np.array_equal(label.numpy() == 1, label_frames(sample.time_s, record.spans))
    assert sample.frames.shape == (12, 32, 32, 3)


def test_groups_hold_at_most_so_many_questions_of_one_video_and_none_is_lost(make_dataset):
    dataset = make_dataset(questions_per_group=2)
    assert max(len(group.records) for group in dataset.groups) == 2
    assert all(len({r.video for r in group.records}) == 1 for group in dataset.groups)
    ids = [r.id for group in dataset.groups for r in group.records]
    assert sorted(ids) == sorted(r.id for g in make_dataset().groups for r in g.records)


def test_a_question_met_again_is_not_tokenized_again(make_dataset, monkeypatch):
    dataset = make_dataset()
    first = dataset.load(0).input_ids
    monkeypatch.setattr(type(dataset.task.tokenizer), "encode", None)
    assert all(map(torch.equal, dataset.load(0).input_ids, first))


def test_the_cache_never_holds_more_than_it_may(make_dataset):
    num_bytes = make_dataset().load(0).num_bytes
    dataset = make_dataset(cache_bytes=2 * num_bytes)
    first = dataset.load(0).frames
    assert dataset.load(0).frames is first
    dataset.load(1)
    dataset.load(2)
    assert dataset.load(0).frames is not first


def test_the_video_used_longest_ago_leaves_the_cache_first(make_dataset):
    num_bytes = make_dataset().load(0).num_bytes
    dataset = make_dataset(cache_bytes=2 * num_bytes)
    first, second = dataset.load(0).frames, dataset.load(1).frames
    assert dataset.load(0).frames is first
    dataset.load(2)
    assert dataset.load(0).frames is first
    assert dataset.load(1).frames is not second


def test_unreadable_videos_are_named_and_dropped_and_no_other_takes_their_place(
    make_dataset, scripted, tmp_path
):
    root = tmp_path / "set"
    shutil.copytree(scripted[0], root)
    names = [group.video for group in make_dataset(root=root).groups]
    (root / names[0]).unlink()
    (root / names[2]).write_bytes(b"not a video")
    dataset = make_dataset(root=root)
    assert set(dataset.dropped) == {names[0], names[2]}
    assert dataset.dropped[names[0]] == "no such file"
    assert [group.video for group in dataset.groups] == [names[1]]


def test_a_video_is_looked_at_once_and_again_only_when_its_file_changed(
    scripted, tmp_path, monkeypatch
):
    root = tmp_path / "set"
    shutil.copytree(scripted[0], root)
    videos = [record.video for record in scripted[1]]
    first = index_videos(root, videos, tmp_path / "index", 2)
    seen = []

    def look(root, video):
        seen.append(video)
        return first[video]

    monkeypatch.setattr("itg_train.index.look_at", look)
    assert index_videos(root, videos, tmp_path / "index", 2) == first
    assert seen == []
    shutil.copy(root / videos[-1], root / videos[0])
    index_videos(root, videos, tmp_path / "index", 2)
    assert seen == [videos[0]]


def test_images_are_videos_of_one_frame_and_broken_ones_are_dropped(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    facts = index_videos(tmp_path, ["red.png", "broken.png"], tmp_path / "index", 1)
    assert facts["red.png"].num_frames == 1
    assert facts["broken.png"].reason


@pytest.fixture
def with_store(make_dataset, tiny_model_config, tmp_path):
    from itg_model.model import FrameGroundingModel

    def attach(dataset: VideoDataset, seed: int = 0) -> VideoDataset:
        torch.manual_seed(seed)
        sha256 = fingerprint_tower(FrameGroundingModel(tiny_model_config).tower)
        directory = tmp_path / "features"
        dataset.store = FeatureStore(
            directory, dataset.root, sha256, dataset.sampling, pooled=False
        )
        return dataset

    return attach


def test_stored_features_stand_in_for_decoding(make_dataset, with_store, monkeypatch):
    dataset = with_store(make_dataset())
    features = torch.rand(12, 16, 16)
    video = dataset.groups[0].video
    dataset.store.write_later(
        video, StoredFeatures(features=features, time_s=np.arange(12, dtype=float))
    )
    dataset.store.finish()
    monkeypatch.setattr("itg_train.squares.open_video", None)
    sample = dataset.load(0)
    assert sample.has_features
    assert sample.store is None
    assert torch.equal(sample.frames, features)


def test_a_cache_does_not_hide_stored_features(make_dataset, with_store):
    dataset = with_store(make_dataset(cache_bytes=2**30))
    seen = dataset.load(0)
    assert not seen.has_features
    # as the tower does once it has seen the pixels
    stored = StoredFeatures(features=torch.rand(12, 16, 16), time_s=seen.time_s)
    seen.store.write(seen.video, stored)
    again = dataset.load(0)
    assert again.has_features
    assert again.store is None
    assert dataset.load(0).frames is again.frames


def test_features_of_another_tower_or_a_cut_off_file_are_none(make_dataset, with_store):
    dataset = with_store(make_dataset())
    video = dataset.groups[0].video
    stored = StoredFeatures(features=torch.rand(12, 16, 16), time_s=np.zeros(12))
    dataset.store.write(video, stored)
    assert dataset.store.read(video) is not None
    assert with_store(make_dataset(), seed=1).store.read(video) is None
    path = dataset.store.path(video)
    path.write_bytes(path.read_bytes()[:100])
    assert dataset.store.read(video) is None


def test_a_replaced_video_meets_no_old_features_and_a_copy_of_the_set_does(
    make_dataset, with_store, scripted, tmp_path
):
    for name in ("set", "copy"):
        # its files' times are not kept
        shutil.copytree(scripted[0], tmp_path / name, copy_function=shutil.copyfile)
    dataset, copy = (with_store(make_dataset(root=tmp_path / name)) for name in ("set", "copy"))
    video = dataset.groups[0].video
    dataset.store.write(video, StoredFeatures(features=torch.rand(12, 16, 16), time_s=np.zeros(12)))
    assert copy.store.read(video) is not None
    path = tmp_path / "set" / video
    whole = path.read_bytes()
    for place in (30, len(whole) - 30):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        assert dataset.store.read(video) is None
    path.write_bytes(whole)
    assert dataset.store.read(video) is not None


def test_a_video_that_vanished_is_an_error_of_its_own_name(make_dataset, scripted, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(scripted[0], root)
    dataset = make_dataset(root=root)
    (root / dataset.groups[1].video).unlink()
    with pytest.raises(VideoError, match=dataset.groups[1].video):
        dataset.load(1)


def test_questions_whose_labels_lie_beyond_the_end_are_named_once_and_not_without_end(
    make_dataset, caplog, monkeypatch
):
    monkeypatch.setattr("itg_train.dataset.NAMED_QUESTIONS", 2)
    dataset = make_dataset()
    group = dataset.groups[0]
    beyond = (TimeSpan(start_s=500.0, end_s=501.0),)
    records = [dataclasses.replace(r, spans=beyond) for r in group.records[:4]]
    dataset.groups[0] = dataclasses.replace(group, records=(group.records[4], *records))
    for _ in range(2):
        dataset.load(0)
    named = [f"record {record.id};" in caplog.text for record in dataset.groups[0].records]
    assert named == [False, True, True, False, False]
    assert sum(record.name == "itg_train.dataset" for record in caplog.records) == 3
    assert "more questions" in caplog.messages[-1]
