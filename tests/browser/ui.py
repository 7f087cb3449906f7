"""Prefect's UI in a real Chromium, by what a user sees of it: forms, runs, menus."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = {"width": 1280, "height": 900}
PATIENCE = 120_000
"""Milliseconds that something may take to appear; a busy machine is no failure."""


class Ui:
    """A window of the browser."""

    def __init__(self, page: Page, url: str, shots: Path, kept: Path | None) -> None:
        self.page = page
        self.shots = shots
        self._kept = kept
        self._url = url
        self._taken = 0

    def open(self, path: str) -> None:
        """Goes to a page of the UI."""
        self.page.goto(self._url + path)

    def shot(self, name: str, height: int = 900, keep: bool = False) -> None:
        """Takes a picture of the window; one to keep is written small, for the README, too."""
        self._taken += 1
        self.page.set_viewport_size({"width": 1280, "height": height})
        self.page.wait_for_timeout(500)  # animations come to their end
        self.page.screenshot(path=self.shots / f"{self._taken:02}-{name}.png")
        if keep and self._kept:
            self.page.screenshot(path=self._kept / f"{name}.jpg", type="jpeg", quality=60)
        self.page.set_viewport_size(SIZE)

    def form(self, deployment: str) -> "Field":
        """Opens the form of a deployment, from the list of deployments."""
        self.open("/deployments")
        named = re.compile(rf"^\s*{deployment}\s*$")
        self.page.locator("a[href*='/deployments/deployment/']", has_text=named).first.click()
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        expect(self.page.get_by_role("button", name="Submit")).to_be_visible()
        return Field(self.page.locator("form"))

    def submit(self) -> str:
        """Sends the form; the id of the flow run that it made."""
        with self.page.expect_response(re.compile("/create_flow_run")) as made:
            self.page.get_by_role("button", name="Submit").click()
        return str(made.value.json()["id"])

    def run(self, run: str, state: str) -> None:
        """Opens the page of a flow run, and waits until it shows the state."""
        self.open(f"/runs/flow-run/{run}")
        expect(self.page.locator(".page-heading")).to_contain_text(state, timeout=PATIENCE)

    def tab(self, name: str) -> None:
        """Opens a tab of the page."""
        self.page.locator("[class*=p-tab]").get_by_text(name, exact=True).first.click()

    def confirm(self, name: str, button: str | None = None) -> "Field":
        """Presses a button of the page's head, and gives the form that asks back."""
        self.page.locator(".page-heading").get_by_role("button", name=name).click()
        dialog = self.page.get_by_role("dialog")
        if button:
            dialog.get_by_role("button", name=button, exact=True).click()
        return Field(dialog)

    def sees(self, text: str | re.Pattern[str]) -> None:
        """Waits until a text is on the page."""
        expect(self.page.get_by_text(text).first).to_be_visible(timeout=PATIENCE)


class Field:
    """A field of a form, or the form itself, by the names that are written over the fields."""

    def __init__(self, at: Locator) -> None:
        self._at = at

    def __getitem__(self, name: str) -> "Field":
        title = f".schema-form-property__label:text-matches('^{re.escape(name)}( \\\\(Optional\\\\))?$')"
        return Field(self._at.locator(f".schema-form-property:has(> .p-label__header {title})").first)

    def opened(self) -> "Field":
        """The field with its own fields shown."""
        self._at.locator("> .p-label__body > .p-button-group").get_by_role("button", name="changed").click()
        return self

    def fill(self, value: Any) -> None:
        """Types into it."""
        self._at.locator("input, textarea").first.fill(str(value))

    def press(self, name: str) -> None:
        """Presses a button in it."""
        self._at.get_by_role("button", name=name, exact=True).click()

    def choose(self, value: str) -> None:
        """Chooses from its list."""
        self._at.locator(".p-select-button__control").first.press("Space")
        self._at.page.get_by_role("option", name=value, exact=True).click()


@contextmanager
def window(url: str, shots: Path, kept: Path | None, profile: Path) -> Iterator[Ui]:
    """A browser of its own, without a screen."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, headless=True, args=FLAGS, viewport=SIZE
        )
        context.set_default_timeout(PATIENCE)
        yield Ui(context.pages[0], url, shots, kept)
        context.close()
