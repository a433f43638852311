import json

import numpy as np
import pytest
import torch
from itg_model import CheckpointError
from itg_model.model import VIDEO_TOKEN_ID
from itg_model.processing import encode_question, load_tokenizer, preprocess_frames
from transformers import PreTrainedTokenizerFast, SiglipImageProcessorPil


@pytest.mark.parametrize("shape", [(1, 40, 30), (3, 24, 24), (2, 5, 200), (2, 97, 131)], ids=str)
def test_pixels_are_those_of_siglips_own_processor(shape):
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = SiglipImageProcessorPil(size={"height": 24, "width": 24}, resample=3)
    wanted = processor(list(frames), return_tensors="pt")["pixel_values"]
    pixels = preprocess_frames(frames, 24)
    assert pixels.shape == (len(frames), 3, 24, 24)
    torch.testing.assert_close(pixels, wanted, atol=1e-6, rtol=0)


def test_the_number_of_threads_changes_nothing():
    frames = np.random.default_rng(0).integers(0, 256, (9, 30, 40, 3), dtype=np.uint8)
    assert torch.equal(preprocess_frames(frames, 24, 1), preprocess_frames(frames, 24, 4))


def test_a_view_of_frames_is_read_right():
    frames = np.random.default_rng(0).integers(0, 256, (4, 30, 80, 3), dtype=np.uint8)
    view = frames[:, :, ::2]
    assert torch.equal(preprocess_frames(view, 24), preprocess_frames(view.copy(), 24))


def test_no_frames_give_no_pixels():
    assert preprocess_frames(np.empty((0, 8, 8, 3), np.uint8), 24).shape == (0, 3, 24, 24)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 4), np.uint8), np.zeros((1, 8, 8, 3))],
)
def test_frames_of_the_wrong_shape_or_type_are_an_error(frames):
    with pytest.raises(ValueError, match=r"frames must be \[T, H, W, 3\] uint8, got"):
        preprocess_frames(frames, 24)


def test_the_prompt_is_the_video_then_the_question_then_a_newline(tokenizer):
    ids = encode_question("where is it", tokenizer).tolist()
    assert ids[0] == VIDEO_TOKEN_ID
    assert tokenizer.decode(ids[1:]) == "where is it\n"


def test_tokens_equal_to_the_pad_id_are_dropped_unless_told_otherwise(tokenizer):
    assert tokenizer.pad_token == "!"
    dropped = encode_question("Look! Where!!", tokenizer)
    kept = encode_question("Look! Where!!", tokenizer, drop_pad_tokens=False)
    assert tokenizer.decode(dropped[1:]) == "Look Where\n"
    assert len(kept) == len(dropped) + 3
    assert int((kept == tokenizer.pad_token_id).sum()) == 3


def test_a_tokenizer_without_a_pad_token_loses_nothing(tokenizer):
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert plain.pad_token_id is None
    ids = encode_question("Look! Where!", plain)
    assert plain.decode(ids[1:]) == "Look! Where!\n"


@pytest.mark.parametrize("question", ["<image>", "a <image> b\n<image>", "<image>\nwhere is it"])
def test_a_question_cannot_bring_in_a_second_video(question, tokenizer):
    ids = encode_question(question, tokenizer)
    assert (ids == VIDEO_TOKEN_ID).nonzero().flatten().tolist() == [0]
    assert tokenizer.decode(ids[1:]) == question + "\n"


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_a_blank_question_is_an_error(question, tokenizer):
    with pytest.raises(ValueError, match="question must not be blank"):
        encode_question(question, tokenizer)


def test_a_tokenizer_loads_beside_our_config_without_a_word(checkpoint_dir, tokenizer, caplog):
    loaded = load_tokenizer(checkpoint_dir)
    question = "Où est-il ? 红色 🟥!"
    assert loaded.pad_token_id == tokenizer.pad_token_id
    assert torch.equal(encode_question(question, loaded), encode_question(question, tokenizer))
    assert caplog.text == ""


def test_a_tokenizer_in_qwen2s_older_files_loads(tokenizer, tmp_path):
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in bpe["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "pad_token": "!"})
    )
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token_id == bpe["vocab"]["!"]
    ids = encode_question("where is the square!", loaded)
    assert loaded.decode(ids[1:]) == "where is the square\n"


def test_a_tokenizer_that_wants_to_run_its_own_code_is_refused(tmp_path):
    config = {"auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)


def test_a_question_with_half_a_character_is_refused(tokenizer):
    with pytest.raises(ValueError, match="must be valid Unicode"):
        encode_question("where\udcff", tokenizer)


def test_a_directory_without_a_tokenizer_is_named(parity_dir):
    with pytest.raises(CheckpointError, match="no tokenizer could be loaded"):
        load_tokenizer(parity_dir)
