import pytest
from browser import emulate, open_browser
from itg_eval.benchmark.plan import Host
from itg_eval.benchmark.report import to_html

pytestmark = pytest.mark.browser

HOSTILE = "</style><script>owned=1</script><img src=x onerror=owned=1>"


@pytest.fixture(scope="module")
def page(tmp_path_factory, make_table):
    folder = tmp_path_factory.mktemp("page")
    host = Host(id=HOSTILE, args="pretrained=Qwen3-VL-8B")
    (folder / "report.html").write_text(to_html(make_table(host, with_two_tasks=True)))
    with open_browser(folder / "profile") as browser:
        browser.get((folder / "report.html").as_uri())
        yield browser


def test_the_report_loads_quietly_and_hostile_names_run_nowhere(page):
    assert page.get_log("browser") == []
    assert page.execute_script("return typeof owned") == "undefined"
    assert page.find_elements("tag name", "img") == []
    assert HOSTILE in page.find_element("tag name", "h2").text


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_report_fits_any_screen_and_its_table_scrolls_by_itself(width, page):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth") == width
    (box,) = page.find_elements("class name", "scroll")
    assert box.rect["x"] + box.rect["width"] <= width
    drawings = page.find_elements("class name", "interval")
    assert drawings
    if width > 1000:
        right = {drawing.rect["x"] + drawing.rect["width"] for drawing in drawings}
        assert max(right) <= width, "the intervals are seen without scrolling"


def test_every_interval_lies_within_its_drawing(page):
    for drawing in page.find_elements("class name", "interval"):
        frame = drawing.rect
        for mark in drawing.find_elements("css selector", ".range, circle"):
            rect = mark.rect
            assert frame["x"] <= rect["x"] + 0.5
            assert rect["x"] + rect["width"] <= frame["x"] + frame["width"] + 0.5


@pytest.mark.parametrize(("scheme", "paper"), [("light", "251, 250, 247"), ("dark", "22, 21, 19")])
def test_the_report_is_light_or_dark_as_asked(scheme, paper, page):
    emulate(page, scheme)
    body = page.find_element("tag name", "body")
    assert paper in body.value_of_css_property("background-color")
