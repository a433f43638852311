"""The page of `itg-select --report` in a real browser, from a scripted video to what is seen."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import emulate, open_browser
from itg_data.synthetic import SyntheticConfig, encode_mp4, render, write_script
from itg_data.timeline.page import show_controls
from itg_data.video import open_video
from itg_model import FrameGroundingModel
from itg_model.cli import main
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.browser

QUESTION = '</script><script>owned=1</script><img src=x onerror=owned=1> \u202e "what\'s & where"'
FILE_NAME = "\"><img src=x onerror=owned=1> \u202e'&.mp4"
SCHEMES = {"light": "rgb(251, 250, 247)", "dark": "rgb(22, 21, 19)"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / FILE_NAME
    config = SyntheticConfig(num_train=1, num_heldout=0, height=96, width=128, duration_s=24)
    script = write_script(config, "train", 0)
    encode_mp4(path, render(config, "train", 0, script), config.fps)
    return path


@pytest.fixture
def selection(clip, tiny_config, tokenizer, tmp_path, capsys) -> dict:
    torch.manual_seed(0)
    FrameGroundingModel(tiny_config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--device", "cpu", "--top-k", "5"]
    assert main([str(clip), QUESTION, *arguments, "--report", str(tmp_path / "out.html")]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def page(browser, selection, tmp_path) -> Chrome:
    """The page, freshly loaded, light, without a pointer on it."""
    browser.get_log("browser"), browser.get_log("performance")
    emulate(browser)
    browser.get((tmp_path / "out.html").as_uri())
    return browser


def by_id(page: Chrome, name: str) -> WebElement:
    return page.find_element("id", name)


def shown_time_s(page: Chrome) -> float:
    minutes, seconds = by_id(page, "time").text.split(":")
    return int(minutes) * 60 + float(seconds)


def hover(page: Chrome, part: float) -> None:
    """Puts the pointer over the curve, some part of the time from its start."""
    box = by_id(page, "chart").rect
    left, right = 34, box["width"] - 8
    from_centre = left + part * (right - left) - box["width"] / 2
    ActionChains(page, duration=0).move_to_element_with_offset(
        by_id(page, "chart"), round(from_centre), 0
    ).perform()


def press(page: Chrome, *keys: str) -> None:
    ActionChains(page, duration=0).send_keys(*keys).perform()


def press_shifted(page: Chrome, key: str) -> None:
    ActionChains(page, duration=0).key_down(Keys.SHIFT).send_keys(key).key_up(Keys.SHIFT).perform()


def nearest_frame(page: Chrome, clip: Path) -> float:
    """The time of the sampled frame that looks most like what the page shows."""
    with Image.open(io.BytesIO(by_id(page, "frame").screenshot_as_png)) as shot:
        seen = np.asarray(shot.convert("RGB").resize((128, 96)), dtype=float)
    with open_video(clip) as reader:
        batch = reader.read(range(0, reader.num_frames, 4))
    errors = np.abs(batch.frames.astype(float) - seen).mean(axis=(1, 2, 3))
    assert errors.min() < 12
    return float(batch.time_s[errors.argmin()])


def test_the_page_loads_quietly_and_asks_no_network_for_anything(page):
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requested = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert requested[0].startswith("file:")
    assert [url for url in requested[1:] if not url.startswith(("blob:", "data:"))] == []


def test_hostile_text_is_shown_as_text_and_runs_nowhere(page, selection):
    assert page.execute_script("return typeof owned") == "undefined"
    assert page.find_elements("tag name", "img") == []
    assert page.title == page.find_element("tag name", "h1").text == show_controls(QUESTION)
    assert page.find_element("tag name", "dd").text == show_controls(selection["video"])
    embedded = page.execute_script("return JSON.parse(document.getElementById('data').textContent)")
    assert embedded["record"] == selection


def test_the_best_frame_is_shown_first_and_every_chosen_one_below(page, selection, clip):
    (best,) = (frame for frame in selection["selected"] if frame["rank"] == 0)
    assert shown_time_s(page) == nearest_frame(page, clip) == best["time_s"]
    assert by_id(page, "place").text == "chosen, rank 0"
    listed = [item.text.split() for item in by_id(page, "chosen").find_elements("tag name", "li")]
    assert listed == [
        [f"0:{frame['time_s']:04.1f}", f"{frame['score']:.3f}"] for frame in selection["selected"]
    ]
    marks = page.find_elements("css selector", ".dot")
    assert len(marks) == len(selection["selected"])


@pytest.mark.parametrize("part", [0.0, 0.31, 0.7, 1.0])
def test_hovering_over_the_curve_shows_the_frame_at_that_time(part, page, selection, clip):
    hover(page, part)
    end_s = selection["times_s"][-1]
    assert abs(shown_time_s(page) - part * end_s) <= 0.6
    assert nearest_frame(page, clip) == shown_time_s(page)
    sample_idx = selection["times_s"].index(shown_time_s(page))
    assert by_id(page, "score").text == f"score {selection['scores'][sample_idx]:.3f}"


def test_arrow_keys_move_over_the_frames(page, selection, clip):
    times = selection["times_s"]
    start = times.index(shown_time_s(page))
    # at once, wherever the focus is
    press(page, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert shown_time_s(page) == nearest_frame(page, clip) == times[max(0, start - 2) + 1]
    slider = by_id(page, "scrub")
    press(page, Keys.TAB)
    assert page.switch_to.active_element == slider
    for key, wanted in {
        Keys.HOME: 0,
        Keys.ARROW_LEFT: 0,
        Keys.ARROW_UP: 1,
        Keys.PAGE_UP: 11,
        Keys.ARROW_DOWN: 10,
        Keys.END: len(times) - 1,
        Keys.ARROW_RIGHT: len(times) - 1,
    }.items():
        press(page, key)
        assert shown_time_s(page) == times[wanted]
        assert slider.get_attribute("aria-valuenow") == str(wanted)
        assert f"{wanted}.0, score" in (slider.get_attribute("aria-valuetext") or "")


def test_shift_and_arrow_go_from_one_chosen_frame_to_the_next(page, selection):
    chosen = [frame["time_s"] for frame in selection["selected"]]
    press(page, Keys.TAB, Keys.HOME)
    seen = []
    for _ in range(len(chosen) + 1):
        press_shifted(page, Keys.ARROW_RIGHT)
        seen.append(shown_time_s(page))
    wanted = [time_s for time_s in chosen if time_s > 0]
    assert seen[: len(wanted)] == wanted
    assert seen[-1] == chosen[-1]
    press_shifted(page, Keys.ARROW_LEFT)
    assert shown_time_s(page) == chosen[-2]


def test_the_chosen_frames_are_one_stop_of_the_tab_key_and_arrows_move_in_them(page, selection):
    chosen = [frame["time_s"] for frame in selection["selected"]]
    press(page, Keys.TAB, Keys.HOME, Keys.TAB, Keys.ENTER)
    place = chosen.index(shown_time_s(page))
    press(page, *[Keys.ARROW_LEFT] * place)
    for i, time_s in enumerate(chosen):
        assert shown_time_s(page) == time_s
        focused = page.switch_to.active_element
        assert focused.get_attribute("aria-current") == "true"
        label = f"0:{time_s:04.1f}, score {selection['selected'][i]['score']:.3f}, chosen, rank"
        assert (focused.get_attribute("aria-label") or "").startswith(label)
        assert focused.value_of_css_property("outline-style") == "solid"
        press(page, Keys.ARROW_RIGHT)
    press(page, Keys.TAB)
    assert page.switch_to.active_element.tag_name == "body"


def test_focus_is_seen_when_keys_bring_it_and_only_then(page):
    slider = by_id(page, "scrub")
    assert slider.value_of_css_property("outline-style") == "none"
    press(page, Keys.TAB)
    assert slider.value_of_css_property("outline-style") == "solid"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_is_readable_in_light_and_dark(scheme, page, tmp_path):
    emulate(page, scheme)
    body = page.find_element("tag name", "body")
    assert rgb(body, "background-color") == rgb(SCHEMES[scheme])
    for selector in ("h1", "dt", "dd", "#time", "#score", "#place", ".legend li", "footer"):
        text = page.find_element("css selector", selector)
        assert contrast(rgb(text, "color"), rgb(SCHEMES[scheme])) >= 4.5, selector
    label = page.find_element("css selector", "svg text")
    assert contrast(rgb(label, "fill"), rgb(SCHEMES[scheme])) >= 4.5
    for selector, colour in {".curve": "stroke", ".dot": "fill"}.items():
        mark = page.find_element("css selector", selector)
        assert contrast(rgb(mark, colour), rgb(SCHEMES[scheme])) >= 3, selector
    page.save_screenshot(str(tmp_path / f"{scheme}.png"))
    with Image.open(tmp_path / f"{scheme}.png") as shot:
        assert shot.convert("RGB").getpixel((2, 2)) == rgb(SCHEMES[scheme])


def test_nothing_moves_by_itself_for_those_who_asked_for_that(page):
    picture = page.find_element("css selector", "#chosen .frame")
    assert picture.value_of_css_property("transition-duration") == "0.15s"
    emulate(page, motion="reduce")
    assert picture.value_of_css_property("transition-duration") == "0s"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_the_page_fits_a_narrow_screen(width, page):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.refresh()
        assert page.execute_script("return document.documentElement.scrollWidth") == width
        curve, frame = by_id(page, "chart").rect, by_id(page, "frame").rect
        # seen together, so that a finger on the curve sees what it does
        assert curve["y"] + curve["height"] - frame["y"] < 700
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def rgb(colour: WebElement | str, css_property: str = "") -> tuple[int, ...]:
    text = colour if isinstance(colour, str) else colour.value_of_css_property(css_property)
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def contrast(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """The ratio of WCAG 2, 1..21."""
    dark, light = sorted(map(luminance, (first, second)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: tuple[int, ...]) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
