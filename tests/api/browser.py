"""A real Chromium without a window, for the tests of the chat page. It logs what it asks the network for."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

_FLAGS = (
    *("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync", "disable-extensions", "disable-dev-shm-usage", "lang=en"),
    "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nobody outside could be asked if it tried
)


class Browser:
    """Chromium with one page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.wait(lambda: self.script("return document.readyState") == "complete")

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """The text of the last element that fits; none while there is none."""
        found = self.script(f"return [...document.querySelectorAll({json.dumps(selector)})].at(-1)?.innerText ?? ''")
        return str(found)

    def script(self, source: str) -> Any:
        return self.driver.execute_script(source)

    def say(self, text: str) -> None:
        self.find("#text").send_keys(text, Keys.ENTER)

    def wait(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"it did not come: {self.script('return document.body.innerText')}"
            time.sleep(0.02)

    def wait_for_end(self) -> None:
        self.wait(
            lambda: self.script("return !document.querySelector('.busy') && !!document.querySelector('.figures')")
        )

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def asked_for(self) -> list[str]:
        """Every address that was asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def sent(self) -> list[dict[str, Any]]:
        """The bodies of what was posted since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        requests = [m["params"]["request"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [json.loads(request["postData"]) for request in requests if "postData" in request]

    def complaints(self) -> list[str]:
        """What the browser has written to its console since the last call: errors and breaches of the policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def chromium(*more_flags: str) -> Iterator[Browser]:
    """A browser, or a skip where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("pages in a browser: Chromium is not installed (apt install chromium chromium-driver)")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for flag in (*_FLAGS, *more_flags, f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        started = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            started.get("about:blank")
            started.get_log("performance")  # what the browser's own first page is made of
            yield Browser(started)
        finally:
            started.quit()
