"""The server's page in a real browser: what it shows are the server's own numbers."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import policies
from uwm.robot.client import PolicyClient
from uwm.robot.server_page import PAGE, picture

INSTALL = "apt-get update && apt-get install -y --no-install-recommends chromium"


@pytest.fixture(scope="module")
def browser():
    """Chromium; installed where that is possible, so that a missing browser is never a test that did not run."""
    names = ("chromium", "chromium-browser", "google-chrome")
    if not any(map(shutil.which, names)) and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["sh", "-c", INSTALL], capture_output=True, timeout=280, check=False)
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, f"these tests need Chromium: {INSTALL}"
    return found


class Dom(HTMLParser):
    """Text by id, and every tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self._ids = {}, [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._ids.append(dict(attrs).get("id"))

    def handle_data(self, data):
        if self._ids and self._ids[-1]:
            self.text[self._ids[-1]] = self.text.get(self._ids[-1], "") + data
        self._ids = [*self._ids[:-1], None]


def opened(browser, url, folder):
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder}",
               "--virtual-time-budget=3000", "--dump-dom", url]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return Dom(done.stdout)


def test_the_page_shows_the_servers_own_numbers_buffers_and_cameras(browser, tmp_path):
    with policies.serving(policies.counting()) as server, PolicyClient(server.url, timeout_s=60) as client:
        for step in range(7):
            client.act(policies.observation(step))
        status = server.status()
        dom = opened(browser, f"http://127.0.0.1:{server.port}/", tmp_path)
    shown = dom.text
    assert (shown["sessions"], shown["connections"], shown["requests"], shown["actions"], shown["errors"]) == ("1", "1", "7", "14", "0")
    assert shown["calls-per-action"] == "1" and shown["state"] == "serving" and "counting" in shown["model"]
    for rank, latency_ms in status["latency_ms"].items():
        digits = 2 if latency_ms < 100 else 0
        assert float(shown[rank].removesuffix(" ms").replace(",", "")) == pytest.approx(latency_ms, abs=0.6 * 10**-digits)
    levels = [attributes["data-level"] for tag, attributes in dom.tags if "data-level" in attributes]
    assert levels == ["0", "0.25", "1"]
    canvases = [(attributes["width"], attributes["height"]) for tag, attributes in dom.tags if tag == "canvas"]
    assert canvases == [("8", "8")] * 2, "one picture per camera"


def test_the_page_asks_for_a_token_where_one_is_needed_and_shows_nothing_before(browser, tmp_path):
    with policies.serving(policies.counting(), token="a-token-of-many-letters") as server:
        dom = opened(browser, f"http://127.0.0.1:{server.port}/", tmp_path)
    assert dom.text["state"] == "needs a token" and "requests" not in dom.text
    assert any(tag == "form" and attributes.get("class") == "needed" for tag, attributes in dom.tags)


def test_the_page_needs_nothing_from_anywhere_else_and_sets_no_markup():
    text = PAGE.read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", text) and "://" not in text and "@import" not in text
    assert "innerHTML" not in text and "eval(" not in text


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (100, 37), (1, 500)])
def test_a_picture_for_the_page_is_small_and_its_own_pixels(shape):
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    small = picture(image)
    assert max(small["width"], small["height"]) <= 64 and len(small["rgb"]) == 4 * -(-small["width"] * small["height"] * 3 // 3)
