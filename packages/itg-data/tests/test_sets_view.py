"""The pages of `itg-data view` in a real browser, hostile sets included."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import emulate, open_browser
from itg_data.annotate.records import Annotation
from itg_data.cli import main
from itg_data.jsonl import read_jsonl
from itg_data.records import from_json
from itg_data.timeline.page import record_in, show_controls
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys

NUM_PAGES = 6
HOSTILE = '</script><script>owned=1</script><img src=x onerror=owned=1> \u202e "what\'s & where"'
SCHEMES = {"light": (251, 250, 247), "dark": (22, 21, 19)}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def pages(annotated_set, tmp_path) -> Path:
    """Pages of a set that says hostile things wherever it can."""
    root = annotated_set(
        {
            0: {
                "question": HOSTILE,
                "answer": HOSTILE,
                "cues": (HOSTILE,),
                "captions": (HOSTILE, "A cup falls.", "", "The end."),
                "explanation": HOSTILE,
                "model": HOSTILE,
                "id": f"../{HOSTILE}",
            }
        }
    )
    out = tmp_path / "pages"
    assert main(["view", str(root), "--out", str(out), "--limit", str(NUM_PAGES)]) == 0
    return out


def shown(pages: Path) -> list[Annotation]:
    return list(read_jsonl(pages.parent / "annotated" / "annotations.jsonl", Annotation))[
        :NUM_PAGES
    ]


def one_with_refused_frames(pages: Path) -> tuple[int, Annotation]:
    """A page's number and what it shows: an annotation with labels and refused frames."""
    return next(
        (number, annotation)
        for number, annotation in enumerate(shown(pages), start=1)
        if number > 1 and {frame.relevant for frame in annotation.frames} == {True, False}
    )


def load(browser: Chrome, page: Path, scheme: str = "light") -> Chrome:
    browser.get_log("browser"), browser.get_log("performance")
    emulate(browser, scheme)
    browser.get(page.as_uri())
    return browser


def texts(browser: Chrome, selector: str) -> list[str]:
    return [element.text for element in browser.find_elements("css selector", selector)]


def asked_for(browser: Chrome) -> set[str]:
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = (m["params"] for m in messages if m["method"] == "Network.requestWillBeSent")
    return {re.split("[:,]", params["request"]["url"])[0] for params in sent}


@pytest.mark.browser
@pytest.mark.parametrize("name", ["index.html", "00001.html"])
def test_hostile_text_is_shown_and_does_nothing(name, pages, browser):
    load(browser, pages / name)
    assert browser.execute_script("return typeof owned") == "undefined"
    assert browser.get_log("browser") == []
    assert asked_for(browser) <= {"file", "data", "blob"}
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert show_controls(HOSTILE) in browser.execute_script("return document.body.textContent")


@pytest.mark.browser
def test_the_index_leads_to_every_sample(pages, browser):
    load(browser, pages / "index.html")
    questions = [show_controls(annotation.question) for annotation in shown(pages)]
    assert texts(browser, ".question") == questions
    for i, question in enumerate(questions):
        browser.get((pages / "index.html").as_uri())
        browser.find_elements("css selector", "a.entry")[i].click()
        assert texts(browser, "h1") == [question]


@pytest.mark.browser
def test_pages_lead_to_their_neighbours_and_back_to_the_index(pages, browser):
    load(browser, pages / "00001.html")
    assert texts(browser, "nav a") == ["all questions", "next"]
    names = []
    while "next" in texts(browser, "nav a"):
        browser.find_element("link text", "next").click()
        names.append(Path(browser.current_url).name)
    assert names == [f"{number:05d}.html" for number in range(2, NUM_PAGES + 1)]
    browser.find_element("link text", "previous").click()
    assert browser.current_url.endswith(names[-2])
    browser.find_element("link text", "all questions").click()
    assert browser.current_url.endswith("index.html")


@pytest.mark.browser
def test_a_page_shows_labels_clips_captions_and_reasons(pages, browser):
    number, annotation = one_with_refused_frames(pages)
    load(browser, pages / f"{number:05d}.html")
    refused = [frame.second for frame in annotation.frames if not frame.relevant]
    assert len(texts(browser, "circle.dot")) == len(annotation.label_s)
    assert len(texts(browser, "circle.hollow")) == len(refused)
    assert len(texts(browser, "rect.passage.is-picked")) == len(annotation.clips)
    assert texts(browser, "#passages button > :last-child") == list(annotation.captions)
    picked = browser.find_elements("css selector", "#passages button")
    classes = [button.get_attribute("class") for button in picked]
    assert [i for i, name in enumerate(classes) if name == "is-picked"] == list(annotation.clips)
    assert annotation.explanation in texts(browser, ".note p")
    shown_s = [int(text[2:4]) for text in texts(browser, "#chosen .words")]
    assert shown_s == list(annotation.label_s)
    assert not browser.find_element("css selector", ".of-curve").is_displayed()
    assert browser.find_element("css selector", ".of-passage").is_displayed()


@pytest.mark.browser
def test_captions_and_the_frame_follow_one_another(pages, browser):
    load(browser, pages / "00002.html")
    buttons = browser.find_elements("css selector", "#passages button")
    for clip in (3, 0, 2):
        buttons[clip].click()
        assert texts(browser, "#time") == [f"0:{5 * clip:02}.0"]
        assert [b.get_attribute("aria-current") == "true" for b in buttons] == [
            i == clip for i in range(4)
        ]
    ActionChains(browser, duration=0).send_keys(Keys.ARROW_LEFT).perform()
    assert texts(browser, "#time") == ["0:09.0"]
    assert buttons[1].get_attribute("aria-current") == "true"


@pytest.mark.browser
def test_what_the_check_refused_is_said_of_the_frame(pages, browser):
    number, annotation = one_with_refused_frames(pages)
    load(browser, pages / f"{number:05d}.html")
    scrub = browser.find_element("id", "scrub")
    scrub.send_keys(Keys.HOME)
    labels = set(annotation.label_s)
    refused = {frame.second for frame in annotation.frames if frame.relevant is False}
    for second in range(18):
        said = {True: ["labelled"], False: [""]}[second in labels]
        assert texts(browser, "#place") == (["refused by the check"] if second in refused else said)
        scrub.send_keys(Keys.ARROW_RIGHT)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["index.html", "00002.html"])
def test_pages_are_light_or_dark_as_the_reader_wishes(name, scheme, pages, browser, tmp_path):
    load(browser, pages / name, scheme)
    browser.save_screenshot(str(tmp_path / "shot.png"))
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.convert("RGB").getpixel((2, 2)) == SCHEMES[scheme]


@pytest.mark.browser
@pytest.mark.parametrize("name", ["index.html", "00001.html"])
def test_pages_fit_a_narrow_screen(name, pages, browser):
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        load(browser, pages / name)
        assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_page_carries_its_record(pages):
    for number, annotation in enumerate(shown(pages), start=1):
        page = (pages / f"{number:05d}.html").read_text()
        assert from_json(Annotation, record_in(page)) == annotation


def test_a_set_without_annotations_and_a_missing_video_are_shown_as_far_as_they_go(
    scripted_root, tmp_path, capsys
):
    root = Path(shutil.copytree(scripted_root, tmp_path / "raw"))
    (root / "videos" / "train-00001.mp4").unlink()
    out = tmp_path / "pages"
    assert main(["view", str(root), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == f"{out}/index.html\n"
    assert "train-00001-0: videos/train-00001.mp4: no such file" in said.err
    assert "no such file" in (out / "index.html").read_text()
    addresses = {
        address
        for path in out.iterdir()
        for address in re.findall(r'href="([^":]+html)"', path.read_text())
    }
    pages = {path.name for path in out.iterdir()}
    assert addresses == pages, "nothing leads to a page that is not there"
    assert len(pages) == 1 + sum(
        "train-00001" not in line for line in (root / "records.jsonl").read_text().splitlines()
    )


def test_samples_are_chosen_by_id_or_number(annotated_set, tmp_path, capsys):
    where = [str(annotated_set()), "--out", str(tmp_path / "out")]
    assert main(["view", *where, "--limit", "2"]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3
    assert main(["view", *where, "--ids", "none"]) == 2
    assert "ids must be of records, got 'none'" in capsys.readouterr().err


def test_one_question_about_one_video_is_counted_as_such(annotated_set, tmp_path):
    arguments = ["view", str(annotated_set()), "--out", str(tmp_path / "pages"), "--limit", "1"]
    assert main(arguments) == 0
    index = (tmp_path / "pages" / "index.html").read_text()
    assert "<h1>1 question about 1 video</h1>" in index
