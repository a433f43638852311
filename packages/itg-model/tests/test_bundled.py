"""The model that comes along, held against scripted videos that it was not trained on."""

import re
from pathlib import Path

import numpy as np
import pytest
from itg_data.metrics import average_precision
from itg_data.records import label_frames
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
from itg_model.grounder import FrameGrounder
from itg_model.locate import TINY, TINY_FOLDER, find_checkpoint

OTHERS = SyntheticConfig(num_train=0, num_heldout=6, seed=7, difficulty=1.0, num_place_questions=2)


def test_it_is_small_and_no_pickle():
    sizes = {path.name: path.stat().st_size for path in TINY_FOLDER.iterdir()}
    assert sum(sizes.values()) < 12e6
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(sizes)
    assert not any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".py")) for name in sizes)


def test_a_directory_of_its_name_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(TINY) == TINY_FOLDER
    (tmp_path / TINY).mkdir()
    (tmp_path / TINY / "config.json").touch()
    assert find_checkpoint(TINY) == Path(TINY)


@pytest.fixture(scope="module")
def precisions(tmp_path_factory) -> dict[str, float]:
    """Question type -> mean average precision, less that of a ranking by time alone."""
    root = tmp_path_factory.mktemp("scripted") / "set"
    grounder = FrameGrounder.from_pretrained(TINY, device="cpu")
    gains: dict[str, list[float]] = {}
    encoded = {}
    for record in load_or_write_dataset(root, OTHERS):
        if record.video not in encoded:
            encoded[record.video] = grounder.encode(root / record.video)
        scored = grounder.score(encoded[record.video], record.question)
        relevant = label_frames(np.array(scored.time_s), record.spans)
        if relevant.any():
            mine = average_precision(np.array(scored.scores), relevant)
            by_time = average_precision(-np.arange(len(relevant)), relevant)
            gains.setdefault(record.question_type, []).append(mine - by_time)
    return {name: float(np.mean(values)) for name, values in gains.items()}


def test_it_finds_objects_and_motions_in_combinations_it_never_saw(precisions):
    assert precisions["semantic"] > 0.5
    assert precisions["semantic_motion"] > 0.5
    assert precisions["motion"] > 0.4


def test_its_card_says_what_it_knows_and_what_it_fails_at():
    card = (TINY_FOLDER / "README.md").read_text()
    assert "**It knows drawn videos only**" in card
    assert re.search(r"\| all \| \d+ \| 0\.\d{3} \|", card)
    assert "## Where it fails" in card
    assert (TINY_FOLDER / "curve.png").read_bytes().startswith(b"\x89PNG")
