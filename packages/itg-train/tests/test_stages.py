"""The stages before grounding, each from the one before, on pictures and clips of one colour."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from itg_data.synthetic.render import encode_mp4
from itg_model.grounder import FrameGrounder
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

TINY = {
    "model.vision.hidden-size": 16,
    "model.vision.intermediate-size": 32,
    "model.vision.num-hidden-layers": 2,
    "model.vision.num-attention-heads": 2,
    "model.vision.image-size": 32,
    "model.vision.patch-size": 8,
    "model.text.hidden-size": 16,
    "model.text.intermediate-size": 32,
    "model.text.num-hidden-layers": 1,
    "model.text.num-attention-heads": 2,
    "model.text.num-key-value-heads": 1,
    "model.text.vocab-size": 300,
    "model.vision-token-num": 64,
    "model.vision-min-num": 1,
    "model.tokenizer-model-max-length": 256,
    "data.sampling.max-frames": 8,
    "data.pad-token-id": "None",
    "engine.device": "cpu",
    "engine.dtype": "float32",
    "num-steps": 3,
    "groups-per-step": 2,
    "tokens-per-pass": 200,
}


def run(home: Path, recipe: str, *changes: str) -> str:
    flags = [str(word) for key, value in TINY.items() for word in (f"--{key}", value)]
    flags += ["--data.root", str(home), "--data.cache-dir", str(home / "index")]
    done = subprocess.run(
        [sys.executable, "-m", "itg_train", recipe, *flags, *changes],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=home,
        env={"PATH": str(Path(sys.executable).parent), "HOME": str(home), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def home(tmp_path):
    for colour in ("red", "blue"):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{colour}.png")
    frames = np.zeros((6, 32, 48, 3), dtype=np.uint8)
    frames[:, :, :, 0] = 200
    encode_mp4(tmp_path / "clip.mp4", iter(frames), 2)

    def said(question, answer):
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    conversations = [
        {"id": 0, "image": "red.png", "conversations": said("<image>\nColour?", "Red.")},
        {"id": 1, "image": "blue.png", "conversations": said("Colour?\n<image>", "Blue.")},
        {"id": 2, "video": "clip.mp4", "conversations": said("<image>\nWhat moves?", "Nothing.")},
        {"id": 3, "conversations": said("And you?", "Fine.")},
    ]
    (tmp_path / "chat.json").write_text(json.dumps(conversations))
    published = [
        {
            "id": 0,
            "video": "clip.mp4",
            "question": "<image>\nWhen is it red?",
            "answer": "Always",
            "frame_num": [1],
            "clip_num": [0],
            "motion": "No",
            "existence": "No",
        }
    ]
    (tmp_path / "video_itg_data.json").write_text(json.dumps(published))
    return tmp_path


def test_each_stage_starts_from_the_one_before_and_moves_what_its_recipe_says(home):
    chat = ("--data.annotations", str(home / "chat.json"))
    assert "held-out loss" in run(home, "projector-pretrain-7b", *chat)
    first = home / "runs" / "projector-pretrain-7b" / "checkpoint"
    run(home, "video-sft-7b", *chat, "--start.checkpoint", str(first), "--data.num-heldout", "1")
    second = home / "runs" / "video-sft-7b" / "checkpoint"
    grounding = ("--data.annotations", str(home / "video_itg_data.json"))
    run(home, "videoitg-7b", *grounding, "--start.checkpoint", str(second))
    third = home / "runs" / "videoitg-7b" / "checkpoint"
    weights = [load_file(each / "model.safetensors") for each in (first, second, third)]

    def moved(before: int, part: str) -> bool:
        names = [name for name in weights[before] if name.startswith(part)]
        assert names
        return any(not weights[before][n].equal(weights[before + 1][n]) for n in names)

    assert moved(0, "model.layers.")
    assert moved(0, "model.mm_projector.")
    assert moved(0, "lm_head.")
    assert not moved(0, "model.vision_tower.")
    assert moved(1, "model.layers.")
    assert "lm_head.weight" not in weights[2]
    selection = FrameGrounder.from_pretrained(third, device="cpu").select(
        home / "clip.mp4", "When is it red?", top_k=1
    )
    assert len(selection.selected) == 1
