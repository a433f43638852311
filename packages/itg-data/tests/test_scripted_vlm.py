import base64
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from itg_data.annotate.records import QaPair
from itg_data.errors import RecordError
from itg_data.jsonl import read_jsonl
from itg_data.records import GroundingRecord
from itg_data.scripted_vlm.answers import Judge, read_caption, read_wanted
from itg_data.scripted_vlm.cli import main
from itg_data.scripted_vlm.protocol import MODEL
from itg_data.scripted_vlm.server import Behaviour, ScriptedServer
from itg_data.scripted_vlm.sight import ScriptedSet
from itg_data.synthetic import SyntheticConfig, load_or_write_dataset
from itg_data.video import open_video
from PIL import Image

CONFIG = SyntheticConfig(num_train=2, num_heldout=1, duration_s=20)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripted") / "set"
    load_or_write_dataset(folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def scripted(root: Path) -> ScriptedSet:
    return ScriptedSet(root)


@pytest.fixture(scope="module")
def records(root: Path) -> list[GroundingRecord]:
    return list(read_jsonl(root / "records.jsonl", GroundingRecord))


def jpeg(frame: np.ndarray, width: int = 448, quality: int = 75) -> bytes:
    height = width * frame.shape[0] // frame.shape[1]
    file = io.BytesIO()
    Image.fromarray(frame).resize((width, height)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def pictures(root: Path, video: str, source_idx: list[int]) -> list[bytes]:
    with open_video(root / video) as reader:
        return [jpeg(frame) for frame in reader.read(source_idx).frames]


def ask(base_url: str, stage: str, images: Sequence[bytes] = (), schema=True, **inputs: Any):
    urls = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]
    parts: list[Any] = [{"type": "text", "text": f"Inputs:\n{json.dumps(inputs)}"}]
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages: list[Any] = [
        {"role": "system", "content": f"# {stage} as told\n"},
        {"role": "user", "content": parts},
    ]
    extra: Any = {}
    if schema:
        named = {"name": stage, "schema": {"type": "object"}}
        extra = {"response_format": {"type": "json_schema", "json_schema": named}}
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        return client.chat.completions.create(model=MODEL, messages=messages, **extra)


def answer_of(response: Any) -> dict[str, Any]:
    return json.loads(response.choices[0].message.content)


@pytest.mark.parametrize(("width", "quality"), [(448, 60), (128, 75), (80, 90)])
def test_every_frame_is_recognised_after_jpeg_and_resizing(width, quality, root, scripted, records):
    video = records[-1].video
    with open_video(root / video) as reader:
        frames = reader.read(range(reader.num_frames))
    for frame, time_s in zip(frames.frames, frames.time_s, strict=True):
        sight = scripted.recognise(jpeg(frame, width, quality))
        assert sight is not None
        assert (sight.video, sight.time_s) == (video, pytest.approx(time_s))


def test_pictures_of_other_videos_are_not_recognised(scripted):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    assert scripted.recognise(jpeg(noise)) is None
    with pytest.raises(ValueError, match="is no picture"):
        scripted.recognise(b"GIF89a and so on")


def test_a_folder_without_a_scripted_set_is_refused(tmp_path, capsys):
    with pytest.raises(RecordError, match="holds no scripted set"):
        ScriptedSet(tmp_path)
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("python -m itg_data.scripted_vlm: ")


def test_questions_and_captions_are_understood():
    wanted = read_wanted("How often is there a red circle that moves left?")
    assert (wanted.colour, wanted.shape, wanted.motion) == ("red", "circle", "left")
    assert read_wanted("What is this video about?").whole_video
    seen = read_caption("A red circle moves left. A blue cross stays still.")
    assert [wanted.fits(combination) for combination in seen] == [True, False]
    assert read_wanted("Which object stays still?").fits(seen[1])


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
def test_a_judge_errs_as_often_as_told(noise):
    judge = Judge(noise, np.random.default_rng(0))
    wrong = sum(judge.says(True) is False for _ in range(4000))
    assert wrong / 4000 == pytest.approx(noise, abs=0.02)


def test_a_truthful_model_leads_from_pictures_to_the_script(root, scripted, records):
    with ScriptedServer(scripted).running() as url:
        of_video = [record for record in records if record.video == records[0].video]
        captions = [
            answer_of(ask(url, "caption", pictures(root, records[0].video, places)))["caption"]
            for places in np.arange(CONFIG.duration_s * CONFIG.fps).reshape(-1, 5 * CONFIG.fps)
        ]
        for record in of_video:
            asked = {"question": record.question, "answer": record.answer}
            clips = answer_of(ask(url, "retrieve", captions=captions, **asked))["clips"]
            true = {
                clip
                for clip in range(len(captions))
                for span in record.spans
                if span.start_s < 5 * clip + 4.75 and span.end_s > 5 * clip
            }
            assert set(clips) == true
            flags = answer_of(ask(url, "classify", **asked))
            assert flags == {
                "motion": record.question_type in ("motion", "semantic_motion"),
                "existence": record.question_type in ("motion", "no_clue"),
            }
            seconds = range(CONFIG.duration_s)
            images = pictures(root, record.video, [s * CONFIG.fps for s in seconds])
            relevant = answer_of(ask(url, "check", images, **asked))["relevant"]
            assert relevant == [
                any(span.start_s <= s < span.end_s for span in record.spans) for s in seconds
            ]


def test_what_the_model_says_depends_on_the_request_alone(scripted):
    behaviour = Behaviour(noise=0.5, malformed=0.3, refusals=0.2)
    told: list[list[Any]] = []
    for _ in range(2):
        with ScriptedServer(scripted, behaviour).running() as url:
            asked = [ask(url, "retrieve", question=f"{i}?", captions=["x"] * 9) for i in range(30)]
        told.append([(r.choices[0].message, r.choices[0].finish_reason) for r in asked])
    assert told[0] == told[1]
    refused = [message for message, _ in told[0] if message.refusal]
    assert 0 < len(refused) < 15
    assert all(message.content is None for message in refused)
    assert "length" in {reason for _, reason in told[0]}


def test_faults_of_the_line_pass_when_the_same_is_asked_again(scripted):
    behaviour = Behaviour(rate_limits=0.3, server_errors=0.2, drops=0.2)
    server = ScriptedServer(scripted, behaviour)
    errors: list[openai.OpenAIError] = []
    with server.running() as url:
        for _ in range(60):
            try:
                ask(url, "cues", question="What does the red circle do?", answer="x")
            except openai.OpenAIError as error:
                errors.append(error)
        stats = httpx.get(url.replace("/v1", "/stats")).json()
    assert set(map(type, errors)) == {
        openai.RateLimitError,
        openai.InternalServerError,
        openai.APIConnectionError,
    }
    limited = [error for error in errors if isinstance(error, openai.RateLimitError)]
    assert {error.response.headers["Retry-After"] for error in limited} == {"0.05"}
    assert stats["requests"] == {"cues": 60}
    assert stats["answered"] == {"cues": 60 - len(errors)}
    assert stats["answered_again"] == stats["answered"]["cues"] - 1
    assert sum(stats["faults"].values()) == len(errors)


def test_a_late_answer_is_late(scripted):
    with ScriptedServer(scripted, Behaviour(delays=1.0, delay_s=0.3)).running() as url:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "{}"}]}
        body["messages"].insert(0, {"role": "system", "content": "# cues"})
        # time to connect in on a busy machine, but none to wait for the answer
        impatient = httpx.Timeout(60, read=0.01)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/chat/completions", json=body, timeout=impatient)
        assert httpx.post(f"{url}/chat/completions", json=body).elapsed.total_seconds() >= 0.3


def test_a_server_without_schemas_says_so_and_is_told_the_stage_by_the_prompt(scripted):
    with ScriptedServer(scripted, Behaviour(takes_schema=False)).running() as url:
        with pytest.raises(openai.BadRequestError, match="response_format is not supported"):
            ask(url, "cues", question="What does the red circle do?")
        response = ask(url, "cues", schema=False, question="What does the red circle do?")
    assert answer_of(response) == {"cues": ["red circle"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "gpt-9"}, "there is no model 'gpt-9'"),
        ({"messages": 3}, "the body is no chat request"),
        ({"messages": []}, "must name one of the stages"),
        ({"messages": [{"role": "system", "content": "# cues"}]}, "inputs as a JSON object"),
        (
            {
                "messages": [
                    {"role": "system", "content": "# check"},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "{}"},
                            {"type": "image_url", "image_url": {"url": "http://x/y.jpg"}},
                        ],
                    },
                ]
            },
            "image_url must be data:image",
        ),
        ({"stream": True}, "stream is not supported"),
    ],
)
def test_requests_that_no_server_would_take_get_the_protocols_error(change, message, scripted):
    body = {"model": MODEL, "messages": [{"role": "system", "content": "# cues"}], **change}
    with ScriptedServer(scripted).running() as url:
        response = httpx.post(f"{url}/chat/completions", json=body)
        assert response.status_code == (404 if "model" in change else 400)
        assert message in response.json()["error"]["message"]
        assert httpx.get(f"{url}/nothing").status_code == 404


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    root = tmp_path_factory.mktemp("process") / "demo"
    size = ["--synthetic.num-train", "1", "--synthetic.num-heldout", "1"]
    command = [sys.executable, "-m", "itg_data.scripted_vlm", str(root), "--port", "0", *size]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield root, server.stdout.readline().strip()
        server.terminate()


def test_the_command_makes_a_set_and_serves_it_as_a_process_of_its_own(process):
    root, url = process
    with openai.OpenAI(base_url=url, api_key="none") as client:
        assert [model.id for model in client.models.list()] == [MODEL]
    truth = list(read_jsonl(root / "records.jsonl", GroundingRecord))
    asked = list(read_jsonl(root / "qa.jsonl", QaPair))
    assert [(qa.id, f"videos/{qa.video}", qa.answer) for qa in asked] == [
        (record.id, record.video, record.answer) for record in truth
    ]
    assert b"spans" not in (root / "qa.jsonl").read_bytes()
    response = ask(url, "caption", pictures(root, truth[0].video, [0, 1, 2, 3]), cues=["x"])
    assert "caption" in answer_of(response)
    assert response.usage is not None
    assert response.usage.prompt_tokens > 4 * 85
    assert httpx.get(url.replace("/v1", "/stats")).json()["images"] == 4


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has the command end where it would serve for ever; what it served by then."""
    served: list[str] = []

    def serve(server: ScriptedServer) -> None:
        served.append(server.base_url)
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedServer, "serve_forever", serve)
    return served


def test_a_set_that_is_there_is_served_as_it_is(root, served, capsys):
    assert main([str(root), "--port", "0"]) == 0
    assert len(served) == 1
    assert "is there and is served as it is" in capsys.readouterr().err


def test_options_that_ask_for_another_set_than_the_one_there_are_refused(root, served, capsys):
    assert main([str(root), "--port", "0", "--synthetic.num-train", "3"]) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert "is there with --synthetic.num-train 2, not 3" in complaint
    assert not served


def test_questions_that_a_killed_writer_did_not_come_to_are_written(root, served, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(root, copy)
    (copy / "qa.jsonl").unlink(missing_ok=True)
    assert main([str(copy), "--port", "0"]) == 0
    pairs = list(read_jsonl(copy / "qa.jsonl", QaPair))
    assert [pair.id for pair in pairs] == [
        record.id for record in read_jsonl(copy / "records.jsonl", GroundingRecord)
    ]
    (copy / "qa.jsonl").write_text("mine")
    assert main([str(copy), "--port", "0"]) == 0
    assert (copy / "qa.jsonl").read_text() == "mine"
