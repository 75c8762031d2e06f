"""The report's page in a real browser: light and dark, on a screen and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from autokernel_agent import page as report
from autokernel_agent.records import Proposal
from autokernel_agent.stop import experiments
from autokernel_agent.usage import Usage

from .agent_nights import HOSTILE, NIGHT, made_up
from .agent_repository import PATH, loop, opened, user_repository

pytestmark = pytest.mark.browser

SCREEN, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
LOOKS = [(size, scheme) for size in (SCREEN, PHONE) for scheme in ("light", "dark")]
BROWSERS = (
    *("google-chrome", "google-chrome-stable", "chromium", "chromium-browser"),
    "chromium-headless-shell",
)

# The contrast of each text with what lies under it (WCAG 2.2, 1.4.3), with the text. Not of numbers
# inside of marks, which lie on a colour that other texts have on the page's: the same two.
CONTRASTS = """() => {
  const rgb = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const under = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = rgb(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    throw new Error("nothing opaque under a text");
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walk.nextNode()) {
    const of = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || of.closest("script, title, option, .inside")) continue;
    const style = getComputedStyle(of);
    const color = rgb(of.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(color), light(under(of))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walk.currentNode.data]);
  }
  return found;
}"""

# Pairs of words in one plot that lie on each other.
OVERLAPS = """() => [...document.querySelectorAll(".frame svg")].flatMap((svg) => {
  const words = [...svg.querySelectorAll("text")];
  const boxes = words.map((word) => word.getBoundingClientRect());
  const meet = (a, b) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  return words.flatMap((one, i) => words.slice(i + 1).flatMap((other, j) =>
    meet(boxes[i], boxes[i + 1 + j]) ? [[one.textContent, other.textContent]] : []));
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = next(filter(None, map(shutil.which, BROWSERS)), own if own.exists() else None)
        if found is None:
            pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}, nor playwright's own")
        started = playwright.chromium.launch(executable_path=found)
        yield started
        started.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a made-up night; beside it `both.html`, of a run on two kernels."""
    folder = tmp_path_factory.mktemp("page")
    with opened(made_up(folder / "repo"), "night") as ledger:
        for e in ledger.experiments[1:]:
            took = Usage(183_421, 4_310 + e.experiment, 0.42)
            ledger.append(Proposal(e.experiment, PATH, e.proposer, None, took, e.started, 88.0))
        (folder / "night.html").write_text(report.html(report.of(ledger)))
    with opened(user_repository(folder / "two"), "both") as ledger:
        for kernel in (PATH, "kernels/reduce.py"):
            loop(ledger, kernel=kernel).run(experiments(3))
        (folder / "both.html").write_text(report.html(report.of(ledger)))
    return folder / "night.html"


Open = Callable[..., Any]


@pytest.fixture
def look(browser: Any, file: Path) -> Iterator[Open]:
    """Opens the page. What it asks for and complains of is in `asked` and `said`."""
    contexts = []

    def look(
        size: dict[str, int] = SCREEN, scheme: str = "light", name: str = "night", **options: Any
    ) -> Any:
        context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.goto(file.with_name(f"{name}.html").as_uri())
        return page

    yield look
    for context in contexts:
        context.close()


def column(page: Any, number: int) -> list[str]:
    """The words in one column of the rows that are shown."""
    words: list[str] = page.locator(
        f"#experiments tbody tr:not([hidden]) td:nth-child({number})"
    ).all_inner_texts()
    return words


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
class TestEveryLook:
    def test_it_asks_for_nothing_and_complains_of_nothing(
        self, look: Open, file: Path, size: dict[str, int], scheme: str
    ) -> None:
        page = look(size, scheme)
        assert page.asked == [file.as_uri()]
        assert page.said == []

    def test_it_is_no_wider_than_the_window(
        self, look: Open, size: dict[str, int], scheme: str
    ) -> None:
        assert look(size, scheme).evaluate("document.documentElement.scrollWidth") == size["width"]

    def test_every_text_can_be_read(self, look: Open, size: dict[str, int], scheme: str) -> None:
        contrasts = look(size, scheme).evaluate(CONTRASTS)
        assert len(contrasts) > 100
        assert min(contrasts)[0] >= 4.5, min(contrasts)

    def test_no_words_in_a_plot_lie_on_others(
        self, look: Open, size: dict[str, int], scheme: str
    ) -> None:
        assert look(size, scheme).evaluate(OVERLAPS) == []


def test_it_is_dark_where_the_reader_wants_that(look: Open) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    assert look(scheme="light").evaluate(colour) == "rgb(255, 255, 255)"
    assert look(scheme="dark").evaluate(colour) == "rgb(20, 23, 26)"


def test_somebody_elses_words_stay_words(look: Open) -> None:
    page = look()
    assert page.evaluate("'stolen' in window") is False
    assert page.locator("img").count() == 0
    assert page.locator("h4", has_text=HOSTILE).count() == 1


def test_its_policy_stops_a_script_that_got_in(look: Open) -> None:
    page = look()
    page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.stolen = 1";
      document.body.append(script);
    }""")
    assert page.evaluate("'stolen' in window") is False
    assert any("Content Security Policy" in said for said in page.said)


def test_every_experiment_is_a_mark_within_its_plot(look: Open) -> None:
    page = look(PHONE)
    marks = page.locator(".frame.progress .mark")
    assert marks.count() == len(NIGHT) + 1
    assert page.locator(".frame.progress .kept .name").all_text_contents() == ["#2", "#6", "#8"]
    assert page.locator(".frame.progress .wrong").count() == 3
    frame = page.locator(".frame.progress").bounding_box()
    for mark in marks.all():
        box = mark.locator("use").bounding_box()
        assert frame["x"] <= box["x"] <= frame["x"] + frame["width"]
        assert frame["y"] - 10 <= box["y"] <= frame["y"] + frame["height"]


def test_the_table_is_filtered_by_words_and_by_outcome(look: Open) -> None:
    page = look()
    assert page.locator("#shown").inner_text() == "13 of 13"
    page.get_by_label("Find").fill("WARPS 16")
    assert column(page, 1) == ["5"]
    assert page.locator("#shown").inner_text() == "1 of 13"
    page.get_by_label("Find").fill("")
    page.get_by_label("Outcome").select_option("KEEP")
    assert column(page, 1) == ["2", "6", "8"]


def test_the_table_is_sorted_by_the_keyboard_in_both_directions(look: Open) -> None:
    page = look()
    header = page.locator("th", has_text="over the kernel before")
    header.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, 1)[:3] == ["10", "5", "1"]
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, 1)[:3] == ["2", "6", "8"]
    assert page.locator("th[aria-sort]").count() == 1


def test_rows_without_a_speed_stay_last(look: Open) -> None:
    page = look()
    header = page.locator("th", has_text="over the kernel before").get_by_role("button")
    for _ in range(2):
        header.click()
        assert set(column(page, 1)[-5:]) == {"0", "3", "7", "9", "12"}


def test_on_a_phone_the_table_is_still_a_table(look: Open) -> None:
    page = look(PHONE)
    assert page.get_by_role("columnheader").count() == 4
    assert page.get_by_role("row").count() == len(NIGHT) + 1
    assert page.get_by_role("cell", name="warps 4 -> 8").is_visible()


@pytest.mark.parametrize("name", ["night", "both"])
@pytest.mark.parametrize("size", [SCREEN, PHONE])
def test_no_cell_of_the_table_runs_over(look: Open, size: dict[str, int], name: str) -> None:
    cells = "[...document.querySelectorAll('td, th')].filter((cell) => cell.checkVisibility())"
    over = f"{cells}.filter((cell) => cell.scrollWidth > cell.clientWidth).map((c) => c.innerText)"
    assert look(size, name=name).evaluate(over) == []


def test_without_scripts_everything_is_there_but_the_controls(look: Open) -> None:
    page = look(java_script_enabled=False)
    assert len(column(page, 1)) == len(NIGHT)
    assert not page.get_by_label("Find").is_visible()


def test_a_kept_mark_leads_to_its_change(look: Open) -> None:
    page = look()
    page.locator(".frame.progress a").first.click()
    assert page.url.endswith("#e2")
    assert page.locator("#e2 h4").inner_text() == "2 warps 4 -> 8"
