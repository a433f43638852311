import os
import re
import subprocess
import sys
from html import unescape
from urllib.parse import unquote

import pytest
import workspace


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=workspace.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


@pytest.mark.slow
def test_all_that_a_page_links_to_or_loads_is_on_the_site(site):
    for page in site.rglob("index.html"):
        found = re.findall(r'(?:href|src)="([^"#?]+)', page.read_text())
        targets = {unquote(unescape(target)) for target in found}
        loaded = {t for t in targets if not re.match(r"[a-z]+:|/", t)}
        assert any(target.endswith(".css") for target in loaded), page
        missing = {t for t in loaded if not (page.parent / t).exists()}
        assert missing == set(), page


@pytest.mark.slow
def test_pages_stand_where_the_repository_has_them(site):
    start = (site / "index.html").read_text()
    assert "the frames that answer the question" in start
    assert 'href="packages/itg-model/"' in start
    grounder = (site / "packages" / "itg-model" / "index.html").read_text()
    assert "Policies" in grounder
    records = (site / "docs" / "records" / "index.html").read_text()
    assert "Stretches known" not in records
    assert "Relevant stretches, in time order" in records


@pytest.mark.slow
def test_a_link_to_what_the_site_does_not_show_is_plain_text(site):
    log = (site / "LOG" / "index.html").read_text()
    assert "itg_data/source.py" not in re.findall(r'href="([^"]*)"', log)
    start = (site / "index.html").read_text()
    assert not re.findall(r'href="[^"]*\.py"', start)
