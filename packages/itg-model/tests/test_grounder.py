import dataclasses
import threading

import numpy as np
import pytest
import torch
from itg_data import VideoError
from itg_data.records import FrameSelection, from_json, to_json
from itg_data.sampling import SamplingConfig
from itg_data.video import VideoReader, open_video
from itg_model import CheckpointError, FrameGrounder, FrameGroundingModel, select_frames
from itg_model import frames as frames_module
from itg_model.export import save_frames
from itg_model.grounder import resolve_device, resolve_dtype
from itg_model.policies import policy_info, policy_names
from itg_model.processing import encode_question, preprocess_frames
from PIL import Image


@pytest.fixture
def grounder(tiny_model, tokenizer) -> FrameGrounder:
    return FrameGrounder(tiny_model, tokenizer, "tiny", frame_chunk=4)


def lose(monkeypatch, lost: set[int]) -> None:
    """Makes every reader lose some frames, as a damaged file does."""
    whole = VideoReader.stream

    def stream(self, source_idx, chunk_size, **options):
        for batch in whole(self, source_idx, chunk_size, **options):
            kept = ~np.isin(batch.source_idx, list(lost))
            yield dataclasses.replace(
                batch,
                frames=batch.frames[kept],
                source_idx=batch.source_idx[kept],
                time_s=batch.time_s[kept],
                missing_source_idx=batch.source_idx[~kept],
            )

    monkeypatch.setattr(VideoReader, "stream", stream)


def test_a_selection_holds_the_best_frames_in_time_order(grounder, video):
    selection = grounder.select(video, "where is the red square", top_k=5)
    assert selection.num_sampled == len(selection.scores) == 10
    assert selection.times_s == pytest.approx(range(10))
    best = sorted(np.argsort(selection.scores)[-5:])
    assert [f.source_idx for f in selection.selected] == [4 * i for i in best]
    assert [f.time_s for f in selection.selected] == [selection.times_s[i] for i in best]
    assert [f.score for f in selection.selected] == [selection.scores[i] for i in best]
    by_rank = sorted(selection.selected, key=lambda f: f.rank)
    assert [f.rank for f in by_rank] == [0, 1, 2, 3, 4]
    assert [f.score for f in by_rank] == sorted(selection.scores, reverse=True)[:5]
    assert (selection.model, selection.policy) == ("tiny", "top-k")
    assert selection.sampling == "train-1hz-max64"
    assert from_json(FrameSelection, {**to_json(selection), **lists(selection)}) == selection


def test_a_grounder_shows_which_model_it_is_and_where(grounder):
    assert repr(grounder) == "FrameGrounder('tiny', cpu)"


def lists(selection: FrameSelection) -> dict[str, object]:
    """The tuples of a record as JSON has them."""
    data = to_json(selection)
    return {k: list(v) for k, v in data.items() if isinstance(v, tuple)}


def test_scores_are_those_of_the_model_on_the_sampled_frames(grounder, video):
    with open_video(video) as reader:
        batch = reader.read(range(0, 40, 4))
    pixels = preprocess_frames(batch.frames, 24)
    ids = encode_question("where is it", grounder.tokenizer)
    with torch.no_grad():
        logits = grounder.model([pixels], [ids]).logits[0]
    selection = grounder.select(video, "where is it")
    assert selection.scores == pytest.approx(logits.double().sigmoid().tolist(), abs=1e-6)
    assert np.std(selection.scores) > 0.01


@pytest.mark.parametrize("frame_chunk", [1, 3, 10, 64])
def test_the_chunk_size_changes_no_score(frame_chunk, grounder, video):
    wanted = grounder.select(video, "where is it").scores
    grounder.frame_chunk = frame_chunk
    assert grounder.select(video, "where is it").scores == pytest.approx(wanted, abs=1e-6)


def test_large_frames_are_shown_in_small_chunks(grounder, video, monkeypatch):
    sizes = []
    grounder.encode(video, on_frames=lambda batch: sizes.append(len(batch.frames)))
    assert sizes == [4, 4, 2]
    monkeypatch.setattr(frames_module, "MAX_CHUNK_BYTES", 3 * 64 * 48 * 3)
    grounder.encode(video, on_frames=lambda batch: sizes.append(batch.frames.shape))
    assert sizes[3:] == [(3, 48, 64, 3)] * 3 + [(1, 48, 64, 3)]


def test_frames_that_are_shown_score_as_those_that_are_not(grounder, video):
    shown = grounder.select(video, "where is it", on_frames=lambda _: None)
    assert shown.scores == pytest.approx(grounder.select(video, "where is it").scores, abs=1e-6)


def test_a_video_encoded_once_answers_many_questions(grounder, video, monkeypatch):
    questions = ["where is the red square", "when does it move"]
    wanted = [grounder.select(video, q, top_k=4) for q in questions]
    encoded = grounder.encode(video)
    monkeypatch.setattr(frames_module, "open_video", None)
    assert [grounder.select(encoded, q, top_k=4) for q in questions] == wanted
    assert wanted[0].scores != wanted[1].scores


def test_another_sampling_than_the_encoded_videos_is_an_error(grounder, video):
    encoded = grounder.encode(video, SamplingConfig(rate_hz=2))
    assert grounder.select(encoded, "where", sampling=SamplingConfig(rate_hz=2)).num_sampled == 20
    with pytest.raises(ValueError, match="was encoded with train-2hz-max512"):
        grounder.select(encoded, "where", sampling=SamplingConfig())


def test_features_that_the_model_cannot_read_are_refused_in_one_line(grounder, video):
    encoded = grounder.encode(video)
    other = dataclasses.replace(encoded, features=encoded.features.bfloat16())
    with pytest.raises(ValueError, match=r"encoded in torch\.bfloat16 on cpu, but the model is in"):
        grounder.score(other, "where")
    other = dataclasses.replace(encoded, features=encoded.features.to("meta"))
    with pytest.raises(
        ValueError, match=r"on meta, but the model is in torch\.float32 on cpu; enc"
    ):
        grounder.score(other, "where")


def test_frames_that_are_nearly_certain_keep_their_order(grounder, video, monkeypatch):
    # in float32 the sigmoid of each is 1
    logits = 18 + torch.arange(10, dtype=torch.float32) % 4
    monkeypatch.setattr(grounder.model, "score", lambda *_: logits)
    scored = grounder.score(grounder.encode(video), "where")
    scores = torch.tensor(scored.scores, dtype=torch.float64)
    assert torch.equal(scores.argsort(stable=True), logits.argsort(stable=True))
    assert len(scores.unique()) == 4


def test_an_encoded_video_equals_itself_and_can_be_a_key(grounder, video):
    first, second = grounder.encode(video), grounder.encode(video)
    assert first != second
    assert {first: 1, second: 2}[first] == 1


def test_a_video_whose_frames_were_taken_is_not_called_damaged(grounder, video):
    with grounder.open(video) as opened:
        grounder.encode_opened(opened)
        with pytest.raises(ValueError, match="is closed or was encoded already; open it anew"):
            grounder.encode_opened(opened)


def test_another_grounders_encoded_video_is_refused_by_name(grounder, video):
    coarse = FrameGrounder(grounder.model, grounder.tokenizer, "tiny+side1", max_pooled_side=1)
    encoded = grounder.encode(video)
    assert encoded.model == "tiny"
    for ask in (coarse.select, coarse.score):
        with pytest.raises(ValueError, match=r"encoded by tiny, not by tiny\+side1: .* encode it"):
            ask(encoded, "where")
    again = FrameGrounder(grounder.model, grounder.tokenizer, "tiny")
    assert again.score(encoded, "where") == grounder.score(encoded, "where")


@pytest.mark.parametrize(
    "policy", [name for name in policy_names() if not policy_info(name).required]
)
@pytest.mark.parametrize("top_k", [1, 9, 10, 32])
def test_a_selection_holds_exactly_as_many_frames_as_asked_for(policy, top_k, grounder, video):
    selection = grounder.select(video, "where is it", top_k, policy=policy)
    assert len({f.source_idx for f in selection.selected}) == min(top_k, 10)
    assert selection.policy == policy


def test_the_policys_parameters_count_and_are_recorded(grounder, video):
    params = {"min_gap_s": 4.0}
    selection = grounder.select(video, "where", 3, policy="min-gap", policy_params=params)
    assert selection.policy == "min-gap(min_gap_s=4)"
    times = [frame.time_s for frame in selection.selected]
    assert len(times) == 3
    assert min(np.diff(times)) >= 2
    wanted = select_frames(selection.scores, 3, "min-gap", min_gap_s=4.0, times_s=selection.times_s)
    assert times == [selection.times_s[i] for i in wanted]


def test_arrays_of_a_policy_belong_to_the_sampled_frames(grounder, video):
    windows = [[i, i + 1] for i in range(10)]
    selection = grounder.select(
        video, "where", 3, policy="temporal-nms", policy_params={"windows": windows}
    )
    assert len(selection.selected) == 3
    with pytest.raises(ValueError, match=r"windows must be \[T, 2\] with T = 10"):
        grounder.select(
            video, "where", 3, policy="temporal-nms", policy_params={"windows": windows[:5]}
        )


def test_missing_frames_are_listed_and_not_scored(grounder, video, monkeypatch):
    whole = grounder.select(video, "where is it", top_k=32)
    # one frame in the first chunk, and the whole of the second
    lose(monkeypatch, {4, 16, 20, 24, 28})
    selection = grounder.select(video, "where is it", top_k=32)
    assert selection.missing_source_idx == (4, 16, 20, 24, 28)
    assert selection.num_sampled == len(selection.selected) == 5
    assert [f.source_idx for f in selection.selected] == [0, 8, 12, 32, 36]
    assert selection.times_s == (0, 2, 3, 8, 9)
    assert len(whole.selected) == 10


def test_a_video_that_gives_no_sampled_frame_is_an_error(grounder, video, monkeypatch):
    lose(monkeypatch, set(range(40)))
    with pytest.raises(VideoError, match="none of the 10 sampled frames can be decoded"):
        grounder.select(video, "where is it")


def test_more_frames_than_the_model_takes_are_an_error(grounder, video, tiny_config):
    config = dataclasses.replace(tiny_config, vision_token_num=9)
    small = FrameGrounder(FrameGroundingModel(config), grounder.tokenizer, "small")
    with pytest.raises(CheckpointError, match="takes 9 frames at most, but sampling gives 10"):
        small.select(video, "where is it", sampling=SamplingConfig())


def test_by_default_no_more_frames_are_looked_at_than_the_model_takes(grounder, video, tiny_config):
    config = dataclasses.replace(tiny_config, vision_token_num=9)
    small = FrameGrounder(FrameGroundingModel(config), grounder.tokenizer, "small")
    selection = small.select(video, "where is it")
    assert (selection.num_sampled, selection.sampling) == (9, "train-1hz-max9")


def test_a_file_that_is_no_video_is_an_error_with_its_path(grounder, tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    with pytest.raises(VideoError, match=r"notes\.mp4: "):
        grounder.select(path, "where is it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "k must be >= 1, got 0"),
        ({"policy": "best"}, "policy must be one of"),
        ({"policy": "mdp3"}, "policy mdp3: embeddings is missing"),
        ({"policy_params": {"depth": 3}}, "policy top-k: unknown parameter depth=3"),
        ({"policy": "aks", "policy_params": {"depth": "3"}}, "depth must be a whole number"),
        ({"policy": "dig", "policy_params": {"boundaries": [0, 9]}}, "boundaries count the frames"),
        ({"question": " "}, "question must not be blank"),
        ({"question": None}, "question must be text, got None"),
        ({"question": ["where"]}, r"question must be text, got \['where'\]"),
    ],
)
def test_a_senseless_request_fails_before_the_video_is_opened(options, message, grounder):
    with pytest.raises(ValueError, match=message):
        grounder.select("no-such.mp4", **({"question": "where"} | options))


def test_progress_counts_every_sampled_frame(grounder, video):
    seen = []
    grounder.select(video, "where", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_a_failure_in_the_tower_ends_decoding_and_closes_the_file(grounder, video, monkeypatch):
    closed, close = [], VideoReader.close
    monkeypatch.setattr(VideoReader, "close", lambda self: (closed.append(1), close(self)))

    def fail(*_) -> None:
        raise MemoryError("tower")

    monkeypatch.setattr(grounder.model, "encode_frames", fail)
    before = threading.enumerate()
    with pytest.raises(MemoryError, match="tower"):
        grounder.encode(video)
    assert closed
    assert set(threading.enumerate()) <= set(before)


def test_a_question_too_long_for_the_model_is_cut_with_a_warning(grounder, video, caplog):
    with caplog.at_level("WARNING"):
        selection = grounder.select(video, "where " * 200)
    assert selection.num_sampled == 10
    assert "question cut from" in caplog.text


def test_scores_that_are_no_numbers_are_an_error(grounder, video):
    with torch.no_grad():
        grounder.model.head.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="10 of 10 scores are not numbers"):
        grounder.select(video, "where")


def test_a_checkpoint_directory_loads_with_its_tokenizer(checkpoint_dir, grounder, video):
    loaded = FrameGrounder.from_pretrained(checkpoint_dir, device="cpu")
    assert loaded.name == str(checkpoint_dir)
    assert loaded.model.head.weight.dtype == torch.float32
    wanted = grounder.select(video, "where is it").scores
    assert loaded.select(video, "where is it").scores == pytest.approx(wanted, abs=1e-6)


def test_a_checkpoint_loads_in_half_precision_and_scores_alike(checkpoint_dir, grounder, video):
    loaded = FrameGrounder.from_pretrained(checkpoint_dir, device="cpu", dtype="bfloat16")
    wanted = grounder.select(video, "where is it").scores
    assert loaded.select(video, "where is it").scores == pytest.approx(wanted, abs=0.1)


def test_a_tokenizer_larger_than_the_model_is_an_error(tiny_model, tokenizer):
    more = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, pad_token="!")
    more.add_tokens([f"<extra{i}>" for i in range(50)])
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, the model 300"):
        FrameGrounder(tiny_model, more, "tiny")


@pytest.mark.parametrize("name", ["no/such/dir", "./nothing", "/nowhere", "a b/c", "../x"])
def test_a_path_that_is_no_directory_is_named(name, tmp_path, monkeypatch):
    # what lies beside the working directory is not the tests' to say
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(CheckpointError, match="no such directory"):
        FrameGrounder.from_pretrained(name)


def test_a_hub_id_that_cannot_be_fetched_is_named():
    with pytest.raises(CheckpointError, match="someone/grounder: no such directory, and not to be"):
        FrameGrounder.from_pretrained("someone/grounder")


def test_devices_and_types_resolve_by_name():
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == resolve_dtype(torch.bfloat16, cpu) == torch.bfloat16
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N, got 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match=r"device cuda:99 was asked for, but there are \d+ GPUs"):
        resolve_device("cuda:99")
    with pytest.raises(ValueError, match="dtype must be auto, float32, float16, bfloat16, got 'x'"):
        resolve_dtype("x", cpu)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "meta"}, "device must be auto, cpu, cuda or cuda:N, got 'meta'"),
        ({"device": torch.device("meta")}, "device must be auto, cpu, cuda or cuda:N"),
        ({"dtype": torch.int32}, "dtype must be auto, float32, float16, bfloat16, got 'int32'"),
        ({"frame_chunk": -1}, "frame_chunk must be >= 0, got -1"),
        ({"frame_chunk": 1.5}, "frame_chunk must be a whole number, got 1.5"),
        ({"max_pooled_side": 0}, "max_pooled_side must be >= 1, got 0"),
        ({"max_pooled_side": 1.5}, "max_pooled_side must be a whole number, got 1.5"),
        ({"precision": "fp4"}, "precision must be one of"),
    ],
    ids=str,
)
def test_a_senseless_option_fails_before_a_checkpoint_is_looked_for(options, message):
    with pytest.raises(ValueError, match=message):
        FrameGrounder.from_pretrained("no/such/dir", **({"device": "cpu"} | options))


def test_a_grounder_of_a_given_model_checks_how_frames_pass(tiny_model, tokenizer):
    with pytest.raises(ValueError, match="frame_chunk must be >= 0, got -1"):
        FrameGrounder(tiny_model, tokenizer, "tiny", frame_chunk=-1)


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_saved_frames_are_those_of_the_video_at_its_own_size(
    image_format, grounder, video, tmp_path
):
    selection = grounder.select(video, "where is it", top_k=9)
    files = save_frames(selection, tmp_path / "new" / "frames", image_format)
    assert sorted(files) == files
    assert len(files) == 9
    with open_video(video) as reader:
        frames = reader.read([f.source_idx for f in selection.selected]).frames
    for path, frame, chosen in zip(files, frames, selection.selected, strict=True):
        assert path.name == f"frame_{chosen.source_idx:08d}_{chosen.time_s:010.3f}s.{image_format}"
        error = np.abs(np.asarray(Image.open(path)).astype(int) - frame)
        assert error.max() == 0 if image_format == "png" else error.mean() < 10
    assert {p.name for p in (tmp_path / "new" / "frames").iterdir()} == {p.name for p in files}


def test_saving_frames_replaces_a_link_rather_than_what_it_points_to(grounder, video, tmp_path):
    selection = grounder.select(video, "where is it", top_k=1)
    (path,) = save_frames(selection, tmp_path / "frames")
    outside = tmp_path / "outside.txt"
    outside.write_text("precious")
    path.unlink()
    path.symlink_to(outside)
    assert save_frames(selection, tmp_path / "frames") == [path]
    assert outside.read_text() == "precious"
    assert not path.is_symlink()
