"""Real models, tiny and with random weights: in this process, and behind `transformers serve`."""

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from itg_data.annotate.caption import CaptionAnswer
from itg_data.annotate.config import LocalConfig
from itg_data.annotate.features import load_features
from itg_data.annotate.openai_client import OpenAIAnnotator, ServerConfig
from itg_data.annotate.records import DroppedSample
from itg_data.annotate.requests import AnnotatorError, Answer, Request, Sampler
from itg_data.annotate.run import run
from itg_data.jsonl import read_jsonl
from PIL import Image

pytestmark = pytest.mark.slow

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}{% endfor %}\n"
    "{% endfor %}assistant:"
)
IMAGE_SIZE, PATCH_SIZE = 28, 14


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of some 40,000 weights that babbles."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("models") / "tiny-vlm"
    bytes_only = Tokenizer(models.BPE())
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    specials = ["<pad>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    bytes_only.train_from_iterator(["pictures of a clip"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, pad_token="<pad>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, **heads, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE)
    text = LlamaConfig(
        **sizes,
        **heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes["num_attention_heads"] = 2
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        text_config={**sizes, "vocab_size": 99},
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(tiny_vlm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`transformers serve` with the tiny model; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(sys.executable).with_name("transformers")
    command = [script, "serve", tiny_vlm, "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("serve") / "stderr.txt"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=stderr, env=environment
        ) as process,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 300
            while not answers(f"{address}/health"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"does not start: {log.read_text()}"
                time.sleep(0.2)
            yield f"{address}/v1"
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((12, 16, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return buffer.getvalue()


REQUEST = Request(
    stage="caption", inputs={"cues": ["square"]}, pictures=("a", "b"), answer_type=CaptionAnswer
)


def test_transformers_serve_answers_a_request_with_pictures(served, tiny_vlm):
    sampler = Sampler(model=str(tiny_vlm), max_tokens=12)

    async def ask() -> list[Answer]:
        annotator = OpenAIAnnotator(ServerConfig(base_url=served, max_retries=0), sampler)
        try:
            pictures = [[], [jpeg(0)], [jpeg(0), jpeg(1)]]
            return [await annotator.ask(REQUEST, some) for some in pictures]
        finally:
            await annotator.close()

    without, with_one, with_two = asyncio.run(ask())
    assert with_two.text is not None
    assert 0 < with_two.completion_tokens <= 12
    # the pictures arrived: each became as many tokens as it has patches
    tokens_a_picture = (IMAGE_SIZE // PATCH_SIZE) ** 2
    assert with_one.prompt_tokens - without.prompt_tokens == tokens_a_picture
    assert with_two.prompt_tokens - with_one.prompt_tokens == tokens_a_picture


def test_a_model_that_babbles_costs_its_pairs_and_nothing_else(
    served, tiny_vlm, make_config, make_pair
):
    config = make_config(
        [make_pair(0, video="short.mp4")],
        annotator=ServerConfig(base_url=served, max_retries=0),
        sampler=Sampler(model=str(tiny_vlm), max_tokens=12),
    )
    state = run(config)
    (dropped,) = read_jsonl(config.out / "dropped.jsonl", DroppedSample)
    assert dropped.reason == "malformed_answer"
    assert state.tally.num_mended == state.tally.num_asked / 2 > 0


def test_a_model_in_this_process_answers_with_pictures_and_the_same_again(tiny_vlm):
    from itg_data.annotate.local import LocalAnnotator

    async def ask(sampler: Sampler) -> Answer:
        annotator = LocalAnnotator(tiny_vlm, sampler, "cpu")
        return await annotator.ask(REQUEST, [jpeg(0), jpeg(1)])

    hot = Sampler(model="tiny", max_tokens=12, temperature=1.5)
    first = asyncio.run(ask(hot))
    assert first.text
    assert asyncio.run(ask(hot)) == first
    other_seed = Sampler(model="tiny", max_tokens=12, temperature=1.5, seed=1)
    assert asyncio.run(ask(other_seed)).text != first.text
    cold = asyncio.run(ask(Sampler(model="tiny", max_tokens=12)))
    assert cold.prompt_tokens == first.prompt_tokens


def test_a_run_takes_a_local_model(tiny_vlm, make_config, make_pair):
    config = make_config(
        [make_pair(0, video="short.mp4")],
        annotator=LocalConfig(folder=tiny_vlm, device="cpu"),
        sampler=Sampler(model="tiny", max_tokens=12),
    )
    assert run(config).dropped == {"malformed_answer": 1}


def test_features_of_clip_are_its_class_token(tiny_clip):
    import torch
    from transformers import CLIPImageProcessor, CLIPModel

    encode = load_features(str(tiny_clip), "cpu")
    assert encode is not None
    pictures = [jpeg(seed) for seed in range(3)]
    features = encode(pictures)
    images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    pixels = CLIPImageProcessor.from_pretrained(tiny_clip)(images=images, return_tensors="pt")
    with torch.inference_mode():
        tower = CLIPModel.from_pretrained(tiny_clip).vision_model
        truth = tower(pixels["pixel_values"]).last_hidden_state[:, 0]
    truth = torch.nn.functional.normalize(truth, dim=-1).numpy()
    np.testing.assert_allclose(features, truth, atol=1e-5)
    assert encode.name == "tiny-clip"


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(AnnotatorError, match=r"is no checkpoint: it has no config\.json"):
        load_features(str(tmp_path))
