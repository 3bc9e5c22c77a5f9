import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def browser():
    """Chromium, or a skip where there is none; closed with the module, since its loop runs on."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
        program = next(found, driver.chromium.executable_path)
        if not Path(program).exists():
            pytest.skip("no Chromium is installed")
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        with driver.chromium.launch(executable_path=program, args=options) as opened:
            yield opened
