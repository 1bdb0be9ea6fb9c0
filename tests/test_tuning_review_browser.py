"""The review page in Debian's chromium: it draws, asks no network, and serves every reader."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.sweeps import hostile_classes, write_sweep
from tuning.record.record import SweepRecord
from tuning.review.page import render_page

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium; its absence skips, which `.ci/run` forbids."""
    if not Path(CHROMIUM).exists():
        assert not os.environ.get("THAW_REQUIRE_SHARED"), f"{CHROMIUM} must be there"
        pytest.skip(f"{CHROMIUM} is not there: apt-get install chromium")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=[*QUIET])
        yield chromium
        chromium.close()


@pytest.fixture
def problems() -> list[str]:
    """What went wrong in pages that `show` opened."""
    return []


@pytest.fixture
def page(browser: Browser, problems: list[str]) -> Iterator[Page]:
    """A window, whose errors and requests are kept in `problems`."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(120_000)
    expect.set_options(timeout=60_000)
    opened = context.new_page()
    opened.on("console", lambda message: problems.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: problems.append(f"error: {error}"))
    opened.on("request", lambda request: problems.extend(find_remote(request.url)))
    yield opened
    context.close()


def find_remote(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:")) else [f"request: {url}"]


def show(page: Page, out: str) -> None:
    """Open the page of a sweep, and wait for its charts."""
    file = Path(out) / "review.html"
    file.write_bytes(render_page(SweepRecord.read(out)))
    page.goto(f"file://{file}")
    page.wait_for_selector("html[data-drawn]", state="attached")


def ranks(page: Page) -> list[str]:
    """Ranks of the leaderboard's visible rows, in order."""
    return page.locator("#trials tbody tr:not([hidden]) td:first-child").all_inner_texts()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trials": 1},
        {"trials": 0, "status": "running"},
        {"trials": 6, "kind": "failed"},
        {"trials": 500, "epochs": 27},
        {"classes": hostile_classes()},
    ],
    ids=["normal", "one", "empty", "failed", "many", "hostile"],
)
def test_page_draws_without_errors_or_network(
    page: Page, problems: list[str], tmp_path: Path, options: dict[str, Any]
) -> None:
    show(page, write_sweep(tmp_path / "sweep", **options))
    charts = page.locator(".chart")
    for chart in charts.all():
        drawn = chart.locator("svg.main-svg").first
        size = drawn.bounding_box()
        assert size is not None and size["width"] > 200 and size["height"] > 100
        marks = chart.locator(".trace, .point, .heatmaplayer image, .bars path")
        assert marks.count() >= 1, chart.get_attribute("id")
        assert chart.get_attribute("role") == "img" and chart.get_attribute("aria-label")
    if not options:
        assert charts.count() == 7
    assert problems == []


def test_leaderboard_sorts_and_filters_by_mouse_and_keys(
    page: Page, problems: list[str], tmp_path: Path
) -> None:
    out = write_sweep(tmp_path / "sweep")
    show(page, out)
    in_order = [str(rank) for rank in range(1, 25)]
    assert ranks(page) == in_order
    head = page.locator("#trials th").nth(0)
    head.get_by_role("button").click()
    assert ranks(page) == in_order[::-1] and head.get_attribute("aria-sort") == "descending"
    time_head = page.locator("#trials th").nth(9)
    time_head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert time_head.get_attribute("aria-sort") == "ascending"
    assert head.get_attribute("aria-sort") is None
    sweep = SweepRecord.read(out)
    seconds = [sweep.trials[int(rank) - 1].seconds for rank in ranks(page)]
    assert seconds == sorted(seconds)

    page.locator("#filters [name=depth]").select_option(label="nothing frozen")
    deep = [str(row.rank) for row in sweep.trials if sweep.frozen_of(row).depth == 0]
    assert sorted(ranks(page)) == sorted(deep)
    assert page.locator("#count").inner_text() == f"{len(deep)} of 24 trials"
    page.locator("#filters [name=text]").focus()
    page.keyboard.type("failed CUDA")
    shown = ranks(page)
    assert shown == [rank for rank in deep if sweep.trials[int(rank) - 1].state == "failed"]

    page.reload()
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert ranks(page) == shown  # what was chosen stays
    assert problems == []


def test_phone_has_no_sideways_scroll(page: Page, problems: list[str], tmp_path: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    names = tuple(f"Manufacturer {i} With A Long Name Convertible Coupe {i}" for i in range(30))
    show(page, write_sweep(tmp_path / "sweep", classes=names, backbone="mobilenet_v2"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.locator("#chart-confusion").bounding_box()
    assert wide is not None and wide["width"] > 390  # scrolls in its box
    assert problems == []


def test_dark_mode_changes_page_and_charts(page: Page, tmp_path: Path) -> None:
    def colours() -> tuple[str, str, str]:
        line = page.locator("#chart-depths .scatterlayer path.js-line").first
        text = page.locator("#chart-depths .xtick text").first
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return background, line.get_attribute("style") or "", text.get_attribute("style") or ""

    show(page, write_sweep(tmp_path / "sweep"))
    light = colours()
    page.emulate_media(color_scheme="dark")
    line = page.locator("#chart-depths .scatterlayer path.js-line").first
    expect(line).not_to_have_attribute("style", light[1])
    dark = colours()
    assert all(before != after for before, after in zip(light, dark, strict=True))


def test_clipping_of_another_trial_is_drawn(page: Page, tmp_path: Path) -> None:
    show(page, write_sweep(tmp_path / "sweep"))
    chart = page.locator("#chart-clipping .scatterlayer").first
    before = chart.inner_html()
    page.locator("select[data-chart=clipping]").select_option(index=1)
    assert chart.inner_html() != before


def test_running_page_follows_and_can_be_paused(page: Page, tmp_path: Path) -> None:
    """The page's timer runs when the test says so: no update comes between two looks at it."""
    page.add_init_script(
        "const start = setInterval;"
        "window.setInterval = (act, ms) => ms === 1000 ? (window.tick = act, 0) : start(act, ms);"
    )
    out = write_sweep(tmp_path / "sweep", status="running")
    file = Path(out) / "review.html"
    file.write_bytes(render_page(SweepRecord.read(out), refresh_s=1))
    page.goto(f"file://{file}")
    page.wait_for_selector("html[data-drawn]", state="attached")
    page.locator("#trials th").nth(0).get_by_role("button").click()
    page.evaluate("scrollTo(0, 900)")
    with page.expect_event("load"):
        page.evaluate("void setTimeout(tick)")
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert ranks(page)[-1] == "1"
    assert page.evaluate("scrollY") == 900
    page.locator("#pause").click()
    page.evaluate("window.isOld = true")
    page.evaluate("void setTimeout(tick)")
    page.wait_for_timeout(500)
    assert page.evaluate("window.isOld") and page.locator("#pause").inner_text() == "Updates paused"
