"""The headless browser of tests that look at pages: chromium, through its driver.

Tests that use it are marked `browser`; `conftest.py` at the root says what becomes of them where
there is none.
"""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1000",
)


@contextmanager
def open_browser(profile: Path) -> Generator[Chrome]:
    """Opens a browser that keeps its console and its requests, for `get_log`, until the block ends.

    Args:
        profile: Folder for the browser's own files.
    """
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def emulate(browser: Chrome, scheme: str = "light", motion: str = "no-preference") -> None:
    """Makes the browser one of a reader who prefers light or dark, and perhaps `reduce`d motion."""
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    wanted = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
