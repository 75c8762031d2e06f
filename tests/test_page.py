"""The report on a run, as Markdown and as a page: what it claims, and whose words it trusts."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from statistics import median

import pytest
from autokernel_agent import page
from autokernel_agent.errors import Refused
from autokernel_agent.ledger import Ledger
from autokernel_agent.page.markdown import fenced, plain
from autokernel_agent.page.story import Story
from autokernel_agent.page.words import duration, us, visible
from autokernel_agent.report import Report
from autokernel_agent.repository import Repository
from autokernel_agent.stop import experiments
from autokernel_agent.tables import details

from pytest_autokernel.decide import estimate

from .agent_cli import Cli
from .agent_nights import H200, HOSTILE, NIGHT, Tried, experiment, made_up
from .agent_repository import PATH, git, loop, opened, user_repository

KEPT = [tried for tried in NIGHT if tried.outcome == "KEEP"]


class Elements(HTMLParser):
    """The elements of a page, each with its attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == tag]


def told(repo: Path, tag: str = "night") -> Story:
    repository = Repository(repo)
    try:
        return page.of(Ledger(repository, tag))
    finally:
        repository.close()


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up(tmp_path_factory.mktemp("night") / "repo")


@pytest.fixture
def copy(repo: Path, tmp_path: Path) -> Path:
    """The same night, to be changed."""
    return shutil.copytree(repo, tmp_path / "copy")


@pytest.fixture(scope="module")
def story(repo: Path) -> Story:
    return told(repo)


@pytest.fixture(scope="module")
def markdown(story: Story) -> str:
    return page.markdown(story)


@pytest.fixture(scope="module")
def html(story: Story) -> str:
    return page.html(story)


@pytest.fixture(scope="module")
def elements(html: str) -> Elements:
    return Elements(html)


class TestWhatBothSay:
    @pytest.fixture(params=["markdown", "html"])
    def text(self, request: pytest.FixtureRequest, markdown: str, elements: Elements) -> str:
        """The words of the report, whichever form they are in."""
        found = markdown if request.param == "markdown" else elements.text
        return found.replace("\\", "").replace("\N{MULTIPLICATION SIGN}", "x")

    def test_the_whole_gain_is_the_last_measurement_with_interval_and_confidence(
        self, text: str
    ) -> None:
        assert "1.846x" in text
        assert "[1.829, 1.862]" in text
        assert "confidence" in text
        assert "measured afresh" in text

    def test_every_kept_change_has_its_diff_and_its_samples(self, text: str) -> None:
        assert len(re.findall(r"\+CONFIG = ", text)) == len(KEPT)
        for kept in KEPT:
            assert f"{kept.ratio:.3f}x" in text
        assert len(re.findall(r"48 in 8 blocks|8 blocks, 48 samples", text)) == 2 * (len(KEPT) + 1)

    def test_every_kept_change_has_the_commands_that_measure_it_again(
        self, text: str, repo: Path
    ) -> None:
        steps = git(repo, "rev-list", "--reverse", "autokernel/night").splitlines()
        for before, after in itertools.pairwise(steps):
            assert f"git switch --detach {after[:12]}\ngit show {before[:12]}:{PATH}" in text
        for seed in (1002, 1006, 1008, 77):
            assert f"--autokernel-seed {seed}" in text

    @pytest.mark.parametrize("tried", NIGHT[1:], ids=lambda tried: tried.outcome)
    def test_every_experiment_is_told_with_its_outcome_and_reason(
        self, text: str, tried: Tried
    ) -> None:
        words = " ".join(unescape(text).split())
        for said in (tried.description, tried.outcome, tried.reason or ""):
            assert " ".join(said.split()) in words

    def test_outcomes_are_counted(self, text: str) -> None:
        for count in ("3 KEEP", "4 REVERT", "2 UNDECIDED", "1 FAIL", "1 CRASH", "1 TIMEOUT"):
            assert count in text

    def test_a_wrong_kernel_has_no_speedup(self, text: str) -> None:
        assert "1.600" not in text

    @pytest.mark.parametrize("fact", ["device", "driver", "torch", "triton", "python"])
    def test_it_says_what_it_was_measured_with(self, text: str, fact: str) -> None:
        assert str(H200[fact]) in text

    def test_it_says_what_all_experiments_share_only_once(self, text: str) -> None:
        assert text.count("all experiments") == 1


def test_blocks_are_shown_by_what_the_judge_decides_by(story: Story) -> None:
    (kernel,) = story.kernels
    for step in kernel.kept:
        shown = "\n".join(details(step.experiment, None))
        timings = Report.parse(step.experiment.timed).timings
        for case, timing in zip(step.cases, timings, strict=True):
            blocks = timing.comparisons["baseline"].blocks
            decided = [estimate([(a, b)], 0.99).ratio for a, b in blocks]
            assert case.ratios == pytest.approx(decided, rel=1e-9)
            assert case.ratios != pytest.approx([median(a) / median(b) for a, b in blocks])
            for number, ratio in enumerate(decided, start=1):
                assert re.search(rf"block {number}: .* us, {ratio:.4g}x \(", shown)


class TestOtherNights:
    def test_no_gain_is_claimed_that_was_not_measured(self, tmp_path: Path) -> None:
        story = told(made_up(tmp_path / "repo", closing=False))
        sentence = "the whole gain was not measured: the run ended before that"
        assert sentence in page.markdown(story)
        assert sentence in page.html(story)
        assert 'class="big"' not in page.html(story)

    def test_a_last_measurement_of_an_earlier_kernel_is_not_taken(self, copy: Path) -> None:
        with opened(copy, "night") as ledger:
            more = Tried("one more", "KEEP", 1.1)
            ledger.append(experiment(ledger, len(NIGHT), more, random.Random(2)))
        text = page.markdown(told(copy))
        assert "the whole gain was not measured" in text
        assert "1.846x" not in text

    def test_a_wrong_last_measurement_says_why(self, copy: Path) -> None:
        journal = copy / ".autokernel/night/experiments.jsonl"
        *lines, last = journal.read_text().splitlines()
        wrong = last.replace(
            '"verdict": "PASS", "reason": null', '"verdict": "CRASH", "reason": "x"'
        )
        journal.write_text("\n".join([*lines, wrong, ""]))
        sentence = "the whole gain was not measured: CRASH: x"
        assert sentence in page.markdown(told(copy))
        assert sentence in page.html(told(copy))

    @pytest.mark.parametrize("night", [NIGHT[:1], NIGHT[:2]], ids=["starter alone", "nothing kept"])
    def test_a_night_without_a_gain_says_so(self, tmp_path: Path, night: tuple[Tried, ...]) -> None:
        story = told(made_up(tmp_path / "repo", night, closing=False))
        for text in (page.markdown(story), page.html(story)):
            assert "nothing was kept: the kernel is its starter" in text

    def test_several_kernels_are_told_one_after_the_other(self, tmp_path: Path) -> None:
        repo = user_repository(tmp_path / "repo")
        with opened(repo, "both") as ledger:
            for kernel in (PATH, "kernels/reduce.py"):
                work = loop(ledger, kernel=kernel)
                work.run(experiments(3))
                work.close()
        story = told(repo, "both")
        assert [kernel.kernel for kernel in story.kernels] == [PATH, "kernels/reduce.py"]
        assert page.html(story).count('class="big"') == 2
        first, second = re.findall(r'(?s)class="frame progress">.*?</svg>', page.html(story))
        assert ">0</text>" in first
        assert ">0</text>" not in second
        assert ">4</text>" in second
        assert page.markdown(story).count("### The whole gain") == 2
        links = [a["href"] for a in Elements(page.html(story)).named("a")]
        assert [link for link in links if link and link[1] == "k"] == ["#k1", "#k2"]
        assert page.markdown(story).count("; kept 1 of") == 2

    def test_two_machines_are_told_apart(self, copy: Path) -> None:
        journal = copy / ".autokernel/night/experiments.jsonl"
        lines = journal.read_text().splitlines()
        lines[3:6] = [line.replace("NVIDIA H200", "NVIDIA L4") for line in lines[3:6]]
        journal.write_text("\n".join([*lines, ""]))
        text = page.markdown(told(copy))
        assert "experiments 0 to 12 (10) and the last measurement:" in text
        assert "experiments 3 to 5 (3):\n\n- device: NVIDIA L4" in text

    def test_a_report_without_throughput_has_no_roofline(self, copy: Path) -> None:
        journal = copy / ".autokernel/night/experiments.jsonl"
        journal.write_text(
            re.sub(r'"gb_s": [\d.]+, "pct', '"gb_s": null, "pct', journal.read_text())
        )
        assert "Roofline" not in page.html(told(copy))

    def test_a_judge_that_names_no_roofs_is_not_improved_upon(self, copy: Path) -> None:
        journal = copy / ".autokernel/night/experiments.jsonl"
        journal.write_text(re.sub(r'"roof": \{[^}]*\}, ', "", journal.read_text()))
        text = page.html(told(copy))
        assert "Where the roofs are, the judge&#39;s report does not say." in text
        assert 'class="slope"' not in text


class TestWords:
    def test_somebody_elses_words_are_no_markup_in_markdown(self, markdown: str) -> None:
        free = re.sub(r"(?s)```.*?```", "", markdown)
        assert HOSTILE.split("<")[1] in unescape(free)
        assert set(re.findall(r"<[^>]*>", free)) == {
            *("<details>", "<summary>", "</summary>", "</details>")
        }

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("a | b", "a \\| b"),
            ("*b* _i_ `c`", "\\*b\\* \\_i\\_ \\`c\\`"),
            ("[x](http://y)", "\\[x\\](http:&#8203;//y)"),
            ("<b> & &lt;", "&lt;b&gt; &amp; &amp;lt;"),
            ("thanks @somebody, #12", "thanks @&#8203;somebody, \\#12"),
            ("two\n\n# lines", "two \\# lines"),
        ],
    )
    def test_markdown_shows_words_as_they_are(self, text: str, shown: str) -> None:
        assert plain(text) == shown

    def test_nothing_in_a_diff_ends_its_block(self) -> None:
        block = fenced("+```\n+# free\n+`````", "diff")
        fence = block.split("diff")[0]
        assert block.count(fence) == 2

    def test_what_nobody_would_see_is_spelled_out(self) -> None:
        assert visible("a\u202eb\x1b[2J\tc\n") == "a\\u202eb\\x1b[2J\tc\n"

    def test_times_and_durations_are_short(self) -> None:
        assert (us(61.2777), us(123456.7)) == ("61.28 µs", "123457 µs")
        assert [duration(s) for s in (12.3, 700, 3900)] == ["12 s", "12 min", "1 h 5 min"]


class TestPage:
    def test_it_needs_nothing_else(self, elements: Elements) -> None:
        for tag, attributes in elements.found:
            assert tag not in {"img", "link", "iframe", "object", "embed", "base", "image"}
            assert "src" not in attributes
            assert "style" not in attributes
            assert (attributes.get("href") or "#").startswith("#")
            assert not any(name.startswith("on") for name in attributes)
        assert elements.text.count("url(") == 0
        assert "@import" not in elements.text

    def test_its_own_policy_allows_its_script_and_style_alone(self, elements: Elements) -> None:
        (policy,) = [m["content"] for m in elements.named("meta") if "http-equiv" in m]
        assert re.fullmatch(
            r"default-src 'none'; style-src 'sha256-\S+'; script-src 'sha256-\S+'", policy or ""
        )

    def test_somebody_elses_words_are_no_markup(self, html: str, elements: Elements) -> None:
        assert HOSTILE not in html
        assert HOSTILE in elements.text
        assert len(elements.named("script")) == 1

    def test_what_nobody_would_see_is_spelled_out(self, tmp_path: Path) -> None:
        hidden = Tried("turn \u202e around", "KEEP", 1.2)
        text = page.html(told(made_up(tmp_path / "repo", (NIGHT[0], hidden))))
        assert "\u202e" not in text
        assert "+# turn \\u202e around" in text

    def test_its_marks_differ_by_shape(self, elements: Elements) -> None:
        drawn = [use["href"] for use in elements.named("use")]
        assert {"#m-kept", "#m-slower", "#m-undecided", "#m-wrong", "#m-total"} <= set(drawn)
        assert {f"#{attributes.get('id')}" for _, attributes in elements.found} >= set(drawn)

    def test_its_plots_say_in_words_what_they_show(self, elements: Elements) -> None:
        labels = [svg.get("aria-label") or "" for svg in elements.named("svg") if "role" in svg]
        assert any("1.846x [1.829, 1.862] over its starter" in label for label in labels)
        assert any(label.startswith("Roofline of") and "FLOP per byte" in label for label in labels)
        assert all(labels)


class TestCommand:
    @pytest.fixture
    def cli(self, tmp_path: Path, repo: Path) -> Cli:
        return Cli(repo, tmp_path)

    def test_markdown_is_printed_where_no_file_is_named(self, cli: Cli, markdown: str) -> None:
        done = cli("report")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == markdown

    def test_files_are_written_and_named(
        self, cli: Cli, tmp_path: Path, markdown: str, html: str
    ) -> None:
        files = {"--html": tmp_path / "a.html", "--markdown": tmp_path / "a.md"}
        done = cli("report", "--tag", "night", *(str(w) for pair in files.items() for w in pair))
        assert done.stdout == "".join(f"wrote {file}\n" for file in files.values())
        assert [file.read_text() for file in files.values()] == [html, markdown]

    def test_a_file_that_cannot_be_written_is_refused(self, cli: Cli, tmp_path: Path) -> None:
        done = cli("report", "--html", str(tmp_path / "no" / "a.html"))
        assert done.returncode == 2
        assert "cannot be written: No such file or directory: choose another file" in done.stderr

    def test_a_tag_without_experiments_is_refused(self, cli: Cli) -> None:
        assert "no experiments of tag 'other'" in cli("report", "--tag", "other").stderr

    def test_an_empty_ledger_is_refused(self, tmp_path: Path, repo: Path) -> None:
        empty = user_repository(tmp_path / "empty")
        (empty / ".autokernel/t").mkdir(parents=True)
        (empty / ".autokernel/t/experiments.jsonl").touch()
        with pytest.raises(Refused, match="no experiment has ended yet"):
            told(empty, "t")

    def test_it_needs_no_judge(self) -> None:
        code = "import sys, autokernel_agent.__main__; print(*sys.modules)"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert {"torch", "triton", "pytest", "pytest_autokernel"}.isdisjoint(loaded.stdout.split())
