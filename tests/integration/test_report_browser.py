"""The report in a real browser: it opens, is drawn, and answers the pointer and the keyboard."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from milvus_lifecycle.cli import main
from tests.audit_logs import Story, merged, write_log
from tests.corruption import Fields
from tests.made_up import synthetic_records

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("bokeh", reason="the extra 'report' is not installed")
image = pytest.importorskip("PIL.Image", reason="pillow is not installed")

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt-get install chromium"),
]

#: Ten times what it took here, on a busy machine.
OPENS_WITHIN_MS = 20_000.0
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield opened
        opened.close()


class Opened:
    """A report in a browser, with everything that went wrong while it was used."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": 1400, "height": 1000}, **options)
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready], html[data-failed]", state="attached")

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(message.text)

    def lanes_area(self) -> dict[str, float]:
        """Where the lanes are drawn on the screen: x, y, width, height in pixels."""
        self.page.locator("#h-timeline").scroll_into_view_if_needed()
        box = self.page.locator(".bk-Figure").nth(1).bounding_box()
        inner = self.page.evaluate(
            "() => [reportPage.figure.inner_width, reportPage.figure.inner_height]"
        )
        right = box["x"] + box["width"] - 12  # the figure's border
        return {"x": right - inner[0], "y": box["y"] + 5, "width": inner[0], "height": inner[1]}

    def point_at(self, across: float, down: float) -> None:
        """Move the pointer into the lanes, to these shares of their width and height."""
        area = self.lanes_area()
        self.page.mouse.move(area["x"] + across * area["width"], area["y"] + down * area["height"])

    def shown(self) -> str:
        text: str = self.page.locator("#shown").inner_text()
        return text


def open_report(browser: Any, folder: Path, records: list[Fields]) -> Opened:
    log = write_log(folder / "audit.jsonl", records)
    assert main(["audit", "report", log, "-o", str(folder / "report.html")]) == 0
    return Opened(browser, folder / "report.html")


def outage_of_one(browser: Any, folder: Path) -> Opened:
    """RECOVERING takes the middle of the log, from a fifth to four fifths of it."""
    troubled = Story("troubled", "one:1").connect()
    troubled.step("fail", "RECOVERING", 17.0, reason="stream <b>removed</b>")
    troubled.step("recovered", "ACTIVE", 60.0).step("release", "IDLE", 20.0)
    others = [Story(f"calm-{n}", "two:1").connect() for n in range(3)]
    return open_report(browser, folder, merged(troubled, *others))


def test_it_opens_alone_and_is_drawn(browser: Any, tmp_path: Path) -> None:
    """No request leaves the page, nothing fails, and the chart shows the states' colours."""
    opened = outage_of_one(browser, tmp_path)
    assert opened.page.locator("html").get_attribute("data-failed") is None
    opened.lanes_area()
    shot = opened.page.locator("#chart").screenshot()
    picture = image.open(io.BytesIO(shot)).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(maxcolors=1_000_000)}
    for state in ((0xD9, 0x5F, 0x02), (0x3F, 0x9E, 0x7C), (0xC3, 0xC8, 0xCF)):
        assert state in colours
    assert opened.page.locator("#diagram svg").count() == 1
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert opened.troubles == []


def test_hover_shows_the_record(browser: Any, tmp_path: Path) -> None:
    """The record that began the stay under the pointer, as text; away from it, nothing."""
    opened = outage_of_one(browser, tmp_path)
    opened.point_at(0.5, 0.1)
    tip = opened.page.locator("#tip")
    tip.wait_for(state="visible")
    words = tip.inner_text()
    for part in ("RECOVERING", "fail from ACTIVE", "stream <b>removed</b>", "one:1", "troubled"):
        assert part in words
    opened.page.mouse.move(5, 5)
    tip.wait_for(state="hidden")


def test_a_click_keeps_the_record_and_leads_on(browser: Any, tmp_path: Path) -> None:
    """The kept record has every field, and its neighbours are one click away."""
    opened = outage_of_one(browser, tmp_path)
    opened.point_at(0.5, 0.1)
    opened.page.mouse.down()
    opened.page.mouse.up()
    kept = opened.page.locator("#record")
    kept.wait_for(state="visible")
    assert "thread_name" in kept.inner_text()
    kept.get_by_role("button", name="Later").click()
    assert "recovered from RECOVERING" in kept.inner_text()
    kept.get_by_role("button", name="Only this connection").click()
    assert opened.shown() == "connections 1 to 1 of 1"


def test_the_filter_hides_lanes(browser: Any, tmp_path: Path) -> None:
    """An endpoint, or a connection, or nothing that matches; and back."""
    opened = outage_of_one(browser, tmp_path)
    assert opened.shown() == "connections 1 to 4 of 4"
    for text, expected in (
        ("one:1", "connections 1 to 1 of 1"),
        ("calm", "connections 1 to 3 of 3"),
        ("nowhere", "no connection matches"),
        ("", "connections 1 to 4 of 4"),
    ):
        opened.page.locator("#filter").fill(text)
        opened.page.locator("#shown", has_text=expected).wait_for()
        lanes = opened.page.evaluate("() => reportPage.figure.left[0].ticker.ticks.length")
        assert lanes == opened.page.evaluate("() => reportPage.visible.length")
    opened.page.locator("#troubled").check()
    assert opened.shown() == "connections 1 to 1 of 1"


def test_an_incident_leads_to_its_place(browser: Any, tmp_path: Path) -> None:
    """Enter on it zooms to the outage, a button leads back, and its link opens the page there."""
    opened = outage_of_one(browser, tmp_path)
    span = "() => reportPage.figure.x_range.end - reportPage.figure.x_range.start"
    whole = opened.page.evaluate(span)
    opened.page.locator("li[data-from]").first.press("Enter")
    assert 60_000 < opened.page.evaluate(span) < whole
    assert opened.page.locator("#filter").input_value() == "one:1"
    opened.page.get_by_role("button", name="Whole log").click()
    assert opened.page.evaluate(span) == whole
    assert opened.shown() == "connections 1 to 4 of 4"
    link = opened.page.locator("li[data-from] a").first.get_attribute("href")
    opened.page.goto(opened.page.url.partition("#")[0] + link)
    opened.page.reload()
    opened.page.wait_for_function("() => document.documentElement.dataset.ready")
    assert 60_000 < opened.page.evaluate(span) < whole


def test_from_incident_to_incident(browser: Any, tmp_path: Path) -> None:
    """A button leads to the next one, whatever lies between; after the last comes the first."""
    story = Story("troubled", "one:1").connect()
    for calm in (10.0, 86_400.0, 5.0):
        story.step("fail", "RECOVERING", calm).step("recovered", "ACTIVE", 2.0)
    story.step("release", "IDLE", 20.0)
    opened = open_report(browser, tmp_path, merged(story))
    middle = "() => (reportPage.figure.x_range.start + reportPage.figure.x_range.end) / 2"

    def leap(name: str) -> float:
        opened.page.get_by_role("button", name=name).click()
        found: float = opened.page.evaluate(middle)
        return found / 1000

    first, *others = [leap("Incident after") for _ in range(4)]
    steps = [round(other - first) for other in others]
    assert steps[-1] == 0  # it is the first again
    assert 86_400 <= steps[0] <= steps[1]
    assert round(leap("Incident before") - first) == steps[1]
    opened.page.get_by_role("button", name="Whole log").click()
    assert round(leap("Incident before") - first) == steps[1]
    assert len(opened.page.locator("tr[data-from]").all()) == 3
    opened.page.locator("tr[data-from]").last.click()  # of the outages: it is no incident
    assert round(leap("Incident before") - first) == steps[1]
    oldest = opened.page.locator("li[data-from] a").last.get_attribute("href")
    opened.page.goto(opened.page.url.partition("#")[0] + oldest)
    opened.page.reload()
    opened.page.wait_for_function("() => document.documentElement.dataset.ready")
    assert round(leap("Incident after") - first) == steps[0]
    assert opened.troubles == []


def test_a_log_without_an_incident_leads_to_none(browser: Any, tmp_path: Path) -> None:
    """There is no button that would do nothing."""
    opened = open_report(browser, tmp_path, merged(Story("calm", "two:1").connect()))
    assert opened.page.get_by_role("button", name="Whole log").is_visible()
    assert not opened.page.get_by_role("button", name="Incident").count()


def test_all_moments_are_the_readers(browser: Any, tmp_path: Path) -> None:
    """The axis, the record under the pointer and a leap go by his clock, as the tables do."""
    outage_of_one(browser, tmp_path).page.close()
    opened = Opened(browser, tmp_path / "report.html", timezone_id="Asia/Kolkata")  # half past
    for figure in ("figure", "overview"):
        whole = f"() => [reportPage.{figure}.x_range.start, reportPage.{figure}.x_range.end]"
        assert opened.page.evaluate(whole) == opened.page.evaluate("() => reportPage.whole")
    assert opened.page.evaluate("() => reportPage.stays.data.left.length") > 3
    shown = opened.page.locator("li[data-from] time").inner_text()
    opened.page.get_by_role("button", name="Incident after").click()
    opened.point_at(0.5, 0.5)
    tip = opened.page.locator("#tip")
    tip.wait_for(state="visible")
    moment = re.search(r"(\d\d):(\d\d):(\d\d)", tip.inner_text())
    assert moment is not None
    assert moment.group(2) + ":" + moment.group(3) in shown
    assert opened.page.evaluate("() => reportPage.log.shift") == 5.5 * 3_600_000
    there = Opened(browser, tmp_path / "report.html", timezone_id="Europe/Berlin")
    clocks = [there.page.evaluate(f"() => clock(Date.UTC(2026, {month}, 1))") for month in (0, 6)]
    assert clocks == ["2026-01-01 01:00:00.000", "2026-07-01 02:00:00.000"]


@pytest.mark.parametrize("width", [400, 800])
def test_a_narrow_window_and_a_dark_one(browser: Any, tmp_path: Path, width: int) -> None:
    """Nothing is wider than the window; in the dark no text of the page is dark."""
    opened = outage_of_one(browser, tmp_path)
    opened.page.set_viewport_size({"width": width, "height": 900})
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") == width
    opened.page.emulate_media(color_scheme="dark")
    color = "() => getComputedStyle(document.body)"
    assert opened.page.evaluate(f"{color}.color") == "rgb(228, 232, 238)"
    assert opened.page.evaluate(f"{color}.backgroundColor") == "rgb(20, 24, 30)"


def test_dragging_zooms(browser: Any, tmp_path: Path) -> None:
    """A drag across the lanes shows that time alone."""
    opened = outage_of_one(browser, tmp_path)
    opened.point_at(0.25, 0.5)
    opened.page.mouse.down()
    opened.point_at(0.5, 0.5)
    opened.page.mouse.up()
    opened.page.wait_for_function(
        """() => {
            const { start, end } = reportPage.figure.x_range, [from, to] = reportPage.whole;
            const share = (end - start) / (to - from);
            return share > 0.2 && share < 0.3;
        }"""
    )


def test_fifty_thousand_records_open_soon(
    browser: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Unthinned, in pages of lanes; how long it took here is kept with the test's result."""
    records = list(synthetic_records(50_000, seed=9, connections=120, addresses=5))
    opened = open_report(browser, tmp_path, records)
    took = float(opened.page.locator("html").get_attribute("data-ready"))
    record_property("opened_ms", took)
    assert took < OPENS_WITHIN_MS
    assert "thinned" not in opened.page.locator("main").inner_text()
    first = opened.shown()
    opened.page.get_by_role("button", name="Next").click()
    assert (first[:18], opened.shown()[:19]) == ("connections 1 to 4", "connections 41 to 8")
    assert opened.troubles == []


def test_a_log_without_steps_opens_too(browser: Any, tmp_path: Path) -> None:
    """Nothing to draw is no error."""
    opened = open_report(browser, tmp_path, merged(Story()))
    assert opened.page.locator("html").get_attribute("data-failed") is None
    assert opened.troubles == []


def test_what_the_log_says_is_never_run(browser: Any, tmp_path: Path) -> None:
    """Scripts in an address, an id or a reason stay text, on the page and in the tooltip."""
    evil = "<img src=x onerror='window.pwned=1'></script><script>window.pwned=1</script>"
    story = Story(evil, evil).connect()
    story.step("fail", "RECOVERING", 1.0, reason=evil).step("recovered", "ACTIVE", 50.0)
    opened = open_report(browser, tmp_path, merged(story))
    opened.point_at(0.5, 0.4)
    opened.page.locator("#tip").wait_for(state="visible")
    assert opened.page.evaluate("() => window.pwned") is None
    assert opened.troubles == []
