"""The page of `itg-select --ui`: the real command, asked over HTTP and in a browser."""

import html
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from itg_data.timeline.page import record_in
from itg_model import FrameGrounder, FrameGroundingModel, ui
from itg_model.cli import main
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

QUESTION = "where is <b>it</b>?"


@pytest.fixture(scope="module")
def checkpoint(tiny_config, tokenizer, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("served") / "checkpoint"
    FrameGroundingModel(tiny_config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def url(checkpoint) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "itg_model.cli", "--ui", "--port", str(port)]
    command += ["--model", str(checkpoint), "--device", "cpu"]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(checkpoint.parent / "uploads")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr
        said = [server.stderr.readline()]
        while said[-1] and "in a browser" not in said[-1]:
            said.append(server.stderr.readline())
        assert "in a browser" in said[-1], "".join(said)
        yield f"http://127.0.0.1:{port}/"
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0


@pytest.mark.slow
def test_a_question_over_http_gives_the_page_and_the_record(url, video, checkpoint, tmp_path):
    client = Client(url, verbose=False, download_files=str(tmp_path))
    frame, record = client.predict(handle_file(video), QUESTION, 3, "top-k", api_name="/ask")
    page = html.unescape(frame.partition('srcdoc="')[2])
    assert 'sandbox="allow-scripts"' in frame
    assert record_in(page) == record
    assert (record["question"], record["video"]) == (QUESTION, video.name)
    assert len(record["selected"]) == 3

    command = [str(video), QUESTION, "--model", str(checkpoint), "--device", "cpu"]
    assert main([*command, "--top-k", "3", "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["selected"] == record["selected"]

    (tmp_path / "no.mp4").write_text("not a video")
    with pytest.raises(Exception, match=r"^no\.mp4: "):
        client.predict(handle_file(tmp_path / "no.mp4"), QUESTION, 3, "top-k", api_name="/ask")
    with pytest.raises(Exception, match="blank"):
        client.predict(handle_file(video), " ", 3, "top-k", api_name="/ask")
    with pytest.raises(Exception, match="drop a video first"):
        client.predict(None, QUESTION, 3, "top-k", api_name="/ask")


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_browser_a_dropped_video_and_a_question_show_curve_and_frames(url, video, tmp_path):
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1500")
    for flag in (*flags, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    page = Chrome(options, Service(shutil.which("chromedriver")))
    try:
        page.get(url)
        wait = WebDriverWait(page, 60)
        upload = wait.until(lambda p: p.find_element("css selector", "input[type=file]"))
        upload.send_keys(str(video))
        wait.until(lambda p: p.find_element("tag name", "video"))
        box = page.find_element("css selector", "textarea")
        box.send_keys("where is it?", Keys.ENTER)
        frame = wait.until(lambda p: p.find_element("css selector", "iframe[title='the frames']"))
        page.switch_to.frame(frame)
        wait.until(lambda p: len(p.find_elements("css selector", ".dot")) == 8)
        assert page.find_element("tag name", "h1").text == "where is it?"
        page.switch_to.default_content()
        shot = os.environ.get("ITG_SCREENSHOTS")
        if shot:
            page.save_screenshot(str(Path(shot) / "ui.png"))
        events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        beyond = [a for a in asked if a.startswith("http") and not a.startswith(url)]
        assert beyond == []
    finally:
        page.quit()


def test_a_video_is_encoded_once_however_many_questions_follow(
    tiny_model, tokenizer, video, monkeypatch
):
    grounder = FrameGrounder(tiny_model, tokenizer, "tiny")
    encoded = []
    encode = grounder.encode
    monkeypatch.setattr(grounder, "encode", lambda *a: encoded.append(a[0]) or encode(*a))
    asker = ui.Asker(grounder)
    first, thumbnails = asker.ask(str(video), "where?", 3, "top-k")
    second, same = asker.ask(str(video), "when?", 3, "bin-max")
    assert encoded == [str(video)]
    assert thumbnails is same
    assert len(thumbnails) == first.num_sampled == second.num_sampled
    assert second.policy == "bin-max"


def test_a_checkpoint_that_is_none_exits_2_with_one_line(capsys):
    assert main(["--ui", "--model", "/no/such/checkpoint"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("itg-select: /no/such/checkpoint: no such directory; name a checkpoint")
    assert error.count("\n") == 1


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(ui.importlib.util, "find_spec", lambda name: None)
    assert main(["--ui", "--model", "x"]) == 2
    assert "pip install 'itg-model[ui]'" in capsys.readouterr().err
