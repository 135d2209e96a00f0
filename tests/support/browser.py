"""A headless Chromium, and what a page looks like in it."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REQUIRED = "NEFTUNE_NEEDS_BROWSER"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOCAL = ("file:", "data:", "blob:", "about:", "chrome:", "chrome-untrusted:")  # the last two are the browser's own

_CONTRAST, _CONTROLS = (Path(__file__).with_name(f"{name}.js").read_text() for name in ("contrast", "controls"))


class Browser:
    """A page at a time; `requests` are the addresses that have been asked for since the last call."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        self.resize(width)
        self.scheme(dark)
        self._driver.get(page.absolute().as_uri())

    def resize(self, width: int) -> None:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, dark: bool) -> None:
        """What the reader's system prefers."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        return self._driver.execute_script(script, *arguments)

    def until(self, script: str, patience: float = 60.0) -> Any:
        """What the script returns as soon as that is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self._driver, patience, poll_frequency=0.05).until(
            lambda driver: driver.execute_script(script)
        )

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self._driver, duration=0).send_keys(*keys).perform()

    def poor_contrast(self) -> list[str]:
        """The texts and marks that stand out too little."""
        found: list[str] = self.run(_CONTRAST)
        return found

    def sideways(self) -> int:
        """By how many pixels the page scrolls sideways."""
        return int(self.run("const page = document.scrollingElement; return page.scrollWidth - page.clientWidth"))

    def unreached(self) -> list[str]:
        """The controls that are seen and that Tab does not reach."""
        from selenium.webdriver.common.keys import Keys

        controls = self.run(_CONTROLS)
        self.run("document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')")
        reached: set[int] = set()
        for _ in range(2 * len(controls) + 10):
            if len(reached - {-1}) == len(controls):
                break
            self.press(Keys.TAB)
            reached.add(self.run("return Number(document.activeElement?.dataset.number ?? -1)"))
        return [control for number, control in enumerate(controls) if number not in reached]

    def requests(self) -> list[str]:
        """The addresses that the pages have asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Chromium with a new profile in the folder. Where there is none the test is skipped; with NEFTUNE_NEEDS_BROWSER=1
    it fails."""
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "there is no Chromium with chromedriver here: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get(REQUIRED) else pytest.skip)(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        opened = Browser(started)
        started.get("about:blank")
        opened.requests()  # those of the page for a new tab, which a slow machine loads until another page is opened
        yield opened
    finally:
        started.quit()
