import json
import shutil

import numpy as np
import pytest
import torch
from itg_data import VideoError
from itg_data.jsonl import read_jsonl
from itg_data.sampling import SamplingConfig
from itg_data.video import VideoReader, open_video
from itg_eval import text_image
from itg_eval.cli import main
from itg_eval.records import DocumentScores, Selections
from itg_eval.text_image import TextImageScorer
from itg_model import CheckpointError
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

SAMPLING = SamplingConfig()


@pytest.fixture
def scorer(text_image_dir) -> TextImageScorer:
    return TextImageScorer.from_pretrained(text_image_dir, "cpu")


def test_scores_are_the_cosines_that_the_model_itself_gives(scorer, text_image_dir, videos):
    question = "where is it"
    scores = scorer.score(scorer.encode(str(videos[0]), SAMPLING), question).scores
    model = AutoModel.from_pretrained(text_image_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(text_image_dir)
    with open_video(videos[0]) as reader:
        frames = reader.read(range(0, 24, 4)).frames
    processor = AutoImageProcessor.from_pretrained(text_image_dir)
    inputs = dict(processor(images=[Image.fromarray(f) for f in frames], return_tensors="pt"))
    text = tokenizer(question, padding="max_length", max_length=24, return_tensors="pt")
    inputs["input_ids"] = text["input_ids"]
    if model.config.model_type == "clip":
        inputs["attention_mask"] = text["attention_mask"]
    with torch.inference_mode():
        given = model(**inputs)
    # both scale the cosine to a logit, SigLIP with a bias
    logits = given.logits_per_image[:, 0] - getattr(model, "logit_bias", torch.zeros(()))
    np.testing.assert_allclose(scores, (logits / model.logit_scale.exp()).detach(), atol=1e-5)
    assert np.ptp(scores) > 1e-3


def test_frames_are_embedded_in_chunks_as_in_one(scorer, videos, monkeypatch):
    whole = scorer.encode(str(videos[0]), SAMPLING)
    monkeypatch.setattr(text_image, "FRAME_CHUNK", 4)
    parts = scorer.encode(str(videos[0]), SAMPLING)
    torch.testing.assert_close(parts.features, whole.features)
    assert parts.source_idx.tolist() == whole.source_idx.tolist() == list(range(0, 24, 4))
    assert (parts.fps, parts.sampling) == (4.0, "train-1hz-max512")


def test_frames_that_the_file_does_not_give_are_listed(scorer, videos, monkeypatch):
    monkeypatch.setattr(text_image, "FRAME_CHUNK", 2)
    read = VideoReader.read

    def lose(self, source_idx):
        if source_idx[0] == 8:
            raise VideoError(self.path, "damaged")
        return read(self, source_idx)

    monkeypatch.setattr(VideoReader, "read", lose)
    encoded = scorer.encode(str(videos[0]), SAMPLING)
    assert encoded.source_idx.tolist() == [0, 4, 16, 20]
    assert encoded.missing_source_idx.tolist() == [8, 12]


def test_a_video_that_gives_nothing_is_an_error(scorer, videos, monkeypatch):
    def lose(self, source_idx):
        raise VideoError(self.path, "damaged")

    monkeypatch.setattr(VideoReader, "read", lose)
    with pytest.raises(VideoError, match="none of the 6 sampled frames"):
        scorer.encode(str(videos[0]), SAMPLING)


def test_a_long_question_is_read_to_its_end(scorer):
    start = "where is the red square and when does it move " * 4
    left, right = (scorer.embed_question(start + end) for end in ("left", "quite up"))
    assert np.linalg.norm(left) == pytest.approx(1, abs=1e-5)
    assert np.abs(left - right).max() > 1e-3


def test_what_is_no_dual_encoder_is_refused(grounder_dir, text_image_dir, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TextImageScorer.from_pretrained(grounder_dir, "cpu")
    with pytest.raises(CheckpointError, match="no such directory"):
        TextImageScorer.from_pretrained(tmp_path / "none", "cpu")
    for path in text_image_dir.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        TextImageScorer.from_pretrained(tmp_path, "cpu")


def test_a_checkpoint_whose_weights_are_not_whole_is_refused_in_one_line(text_image_dir, tmp_path):
    def spoil(name, change):
        target = tmp_path / name
        shutil.copytree(text_image_dir, target)
        change(target / "model.safetensors")
        with pytest.raises(CheckpointError) as caught:
            TextImageScorer.from_pretrained(target, "cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def change_tensor(value):
        def change(path):
            tensors = load_file(path)
            name = next(n for n in sorted(tensors) if n.endswith("post_layernorm.weight"))
            del tensors[name]
            if value is not None:
                tensors[name] = value
            save_file(tensors, path, metadata={"format": "pt"})

        return change

    assert "1 missing keys, such as " in spoil("missing", change_tensor(None))
    spoil("shape", change_tensor(torch.zeros(5)))
    torn = spoil("torn", lambda path: path.write_bytes(path.read_bytes()[:-100]))
    assert "cannot be loaded: " in torn
    assert "cannot be loaded: " in spoil("zeros", lambda path: path.write_bytes(b"\0" * 64))


def test_scores_that_are_no_numbers_are_refused(scorer, videos):
    encoded = scorer.encode(str(videos[0]), SAMPLING)
    with torch.inference_mode():
        encoded.features[2] = float("nan")
    with pytest.raises(CheckpointError, match="1 of 6 scores are not numbers"):
        scorer.score(encoded, "where")


def test_a_text_image_model_gives_every_policy_what_it_needs(
    text_image_dir, documents_file, documents, tmp_path, capsys
):
    run = tmp_path / "run"
    arguments = ["score", "--documents", str(documents_file), "--model", str(text_image_dir)]
    arguments += ["--output", str(run), "--device", "cpu", "--scorer", "text-image"]
    assert main([*arguments, "--save-embeddings"]) == 0
    rows = list(read_jsonl(run / "scores.jsonl", DocumentScores))
    for row in rows:
        assert row.embeddings is not None
        frames = np.load(run / "embeddings" / row.embeddings)
        np.testing.assert_allclose(
            frames @ np.array(row.query_embedding), row.scored.scores, atol=1e-5
        )
    assert len(list((run / "embeddings").iterdir())) == 3
    for policy in ("mdp3", "wfs-sb", "q-frame"):
        chosen = run / f"{policy}.jsonl"
        options = ["--policy", policy, "--top-k", "3", "--output", str(chosen)]
        assert main(["select", "--scores", str(run / "scores.jsonl"), *options]) == 0
        selections = Selections.load(chosen)
        assert all(len(selections[d.key].source_idx) == 3 for d in documents)
    assert json.loads((run / "settings.json").read_text())["embeddings"] is True
