import ast
import importlib
import os
import re
import subprocess
import sys
from html import unescape
from urllib.parse import unquote

import pytest
import workspace
import yaml


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


@pytest.mark.slow
def test_every_entry_of_the_navigation_has_its_own_title_there(site):
    # the theme can make a README the page of its section, whose title it then loses
    config = (workspace.ROOT / "mkdocs.yml").read_text()
    nav = yaml.safe_load(config)["nav"]
    shown = re.findall(r'"md-ellipsis">\s*([^<]+?)\s*<', (site / "index.html").read_text())
    assert {title for entry in nav for title in _titles(entry)} <= {unescape(t) for t in shown}


@pytest.mark.slow
def test_what_pages_and_examples_import_is_in_the_reference():
    pages = [*workspace.ROOT.glob("docs/*.md"), *workspace.ROOT.glob("packages/*/README.md")]
    listed = {
        name
        for page in pages
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
    }
    code = [
        block
        for page in pages
        for block in re.findall(r"(?s)```python\n(.*?)```", page.read_text())
    ]
    code += [path.read_text() for path in workspace.ROOT.glob("examples/*_*.py")]
    named = {found for text in code for found in _imported(text)}
    assert len(named) > 20
    assert {
        f"{home}.{name}" for home, name in named if not {home, f"{home}.{name}"} & listed
    } == set()


def _imported(code):
    """Where the names of itg packages that the code imports are defined, and what they are."""
    for node in ast.walk(ast.parse(code)):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        if isinstance(node, ast.ImportFrom) and module.startswith("itg_"):
            for alias in node.names:
                found = getattr(importlib.import_module(module), alias.name)
                yield found.__module__, found.__qualname__


def _titles(entry):
    ((title, below),) = entry.items()
    return [title, *(t for e in below for t in _titles(e))] if isinstance(below, list) else [title]
