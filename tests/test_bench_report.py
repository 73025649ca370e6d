"""The report: a page that says what to use, is safe with any name, and readable anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from argparse import Namespace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bitnet_tuning.bench import report
from bitnet_tuning.bench.compare import compare
from bitnet_tuning.bench.comparison import CheckFacts, Round, Run
from bitnet_tuning.bench.report import comparison_page, page
from bitnet_tuning.bench.results import Part, Results, Surroundings
from bitnet_tuning.bench.summary import Summary
from bitnet_tuning.bench.tune import export
from bitnet_tuning.console import times
from bitnet_tuning.errors import UsageError
from bitnet_tuning.plan.profile import Estimate
from tests.bench_samples import SNAPSHOT, SPEEDS, Simulator, sample_results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(1)> $x_1$ & \u4f60\x1b[31m\udcff"""

VOID = {"meta", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """The page as a browser parses it."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


@pytest.fixture(scope="module")
def results() -> Results:
    return sample_results()


@pytest.fixture(scope="module")
def html(results: Results) -> str:
    return page(results)


@pytest.fixture(scope="module")
def read(html: str) -> Page:
    return Page(html)


def test_every_element_is_closed_and_ids_are_unique(read: Page) -> None:
    assert read.open == []
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing(html: str, read: Page) -> None:
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "img", "link", "iframe", "object", "base", "form"}
    for _, attributes in read.tags:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    policy = next(each for each in read.named("meta") if "http-equiv" in each)
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_the_page_is_accessible(read: Page) -> None:
    assert read.named("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in read.named(
        "meta"
    )
    assert len(read.named("title")) >= 1 and len(read.named("h1")) == 1
    assert len(read.named("caption")) == len(read.named("table")) == 1
    assert {each.get("scope") for each in read.named("th")} == {"col", "row"}
    drawings = read.named("svg")
    assert len(drawings) == len(read.named("figcaption")) == 1
    assert drawings[0]["role"] == "img"
    assert "4 threads + no mmap ×1.30 (1.24–1.37)" in (drawings[0]["aria-label"] or "")


def test_the_page_has_all_results(results: Results, read: Page) -> None:
    text, summary = read.text, Summary(results)
    assert summary.answer in text
    assert all(said in text for said in summary.details())
    for row in summary.rows:
        assert row.words in text
        if row.to_default:
            assert times(*row.to_default).split()[0] in text
    for said in (*results.warnings, *results.notes, results.engine.path, results.model.path):
        assert said in text
    assert "wrong output: writes other words than the default" in text
    assert results.energy.reason and results.energy.reason in text
    assert results.roof.facts and str(results.roof.facts["words"]) in text


def test_plots_use_the_pages_colours(html: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawings)) == set()
    style = (Path(report.__file__).parent / "report.html").read_text()
    defined = set(re.findall(r"(--[a-z]+):", style))
    assert set(re.findall(r"var\((--[a-z]+)\)", html)) <= defined


def test_the_same_results_make_the_same_page(results: Results, html: str) -> None:
    assert page(results) == html
    assert "<metadata>" not in html


def spoilt(results: Results) -> Results:
    """Return the results with names that try to inject markup."""
    settings = {
        EVIL if name == "4 threads" else name: each for name, each in results.settings.items()
    }
    rounds = tuple(
        each._replace(
            runs=tuple(
                run._replace(setting=EVIL) if run.setting == "4 threads" else run
                for run in each.runs
            )
        )
        for each in results.rounds
    )
    settings["default"] = settings["default"]._replace(env=(("X", EVIL),))
    return results._replace(
        settings=settings,
        rounds=(*rounds, Round(99, EVIL, (Run("1 thread", {}, 1.0, EVIL),), 300.0)),
        checks=(CheckFacts("2 threads", EVIL, 1),),
        model=results.model._replace(name=EVIL, path=EVIL, quantization=EVIL),
        engine=results.engine._replace(path=EVIL, version=EVIL, openmp=EVIL, isa=(EVIL,)),
        host=results.host._replace(brand=EVIL, governor=EVIL),
        notes=(EVIL,),
        warnings=(EVIL,),
        energy=Part(None, EVIL),
        conditions=Surroundings(SNAPSHOT._replace(governor=EVIL, frequency_driver=EVIL), SNAPSHOT),
        program=results.program._replace(version=EVIL),
    )


def test_names_are_shown_as_text(results: Results, tmp_path: Path) -> None:
    place = tmp_path / "evil.html"
    options = Namespace(csv=None, report=str(place), json=False)
    export(options, str, lambda: page(spoilt(results)))
    content = place.read_text(encoding="utf-8")
    read = Page(content)
    assert read.open == []
    names = {tag for tag, _ in read.tags}
    assert not names & {"script", "img"}
    assert not any(key.startswith("on") for _, attributes in read.tags for key in attributes)
    assert "<script>alert(1)</script>" in read.text
    assert "$x_1$" in read.text
    assert "\x1b" not in content


def test_results_without_or_with_one_round_make_a_page(results: Results) -> None:
    begun = results._replace(
        state="interrupted", rounds=(), checks=(), warnings=(), notes=(), decision=None,
        profile=None, bandwidth=Part(), roof=Part(), energy=Part(), conditions=Surroundings(),
    )  # fmt: skip
    read = Page(page(begun))
    assert read.open == [] and read.named("svg") == []
    assert "This benchmark is interrupted" in read.text
    made = Simulator()
    made.add("threads", ["default", "4 threads"], SPEEDS)
    one = Page(page(begun._replace(rounds=tuple(made.rounds))))
    assert len(one.named("svg")) == 1 and "1 run" in one.text


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    options = Namespace(csv=None, report=str(tmp_path / "nowhere" / "report.html"), json=False)
    with pytest.raises(UsageError, match="cannot write the report file"):
        export(options, str, str)


def test_a_comparison_is_a_page_that_fits_a_phone(results: Results) -> None:
    names = ("<a>.json", "b.json")
    content = comparison_page(compare(results, sample_results(2)), names)
    read = Page(content)
    assert read.open == [] and "a" not in {tag for tag, _ in read.tags}
    text = content.split("<pre ")[1].split(">", maxsplit=1)[1].split("</pre>")[0]
    assert "Speed of B (b.json) over A (&lt;a&gt;.json):" in text
    table = text[text.index("setting") : text.index("B against A")]
    assert max(map(len, table.splitlines())) <= report.PHONE
    assert "not decided" in table


def test_markup_leaves_out_empty_parts() -> None:
    assert report.section("title", "", "") == ""
    assert report.escape("a\n\t<b>\x00") == "a &lt;b&gt;?"


def test_what_counts_as_equal_is_told(read: Page) -> None:
    assert "inside the band, speeds are equal within 2 %." in read.text


def test_long_names_leave_room_for_the_ratio() -> None:
    name = "16 threads + KMP_BLOCKTIME=infinite + flash attention"
    drawn = report.ratios_svg([(name, Estimate(0.04, 0.03, 11.5, 9), True)], 0.02)
    read = Page(drawn)
    assert "16 threads + KMP_BLOCKTIME=infi…" in read.text and "×0.040 (0.030–11.50)" in read.text
    places = [float(each["cx"] or 0) for each in read.named("circle")]
    assert all(0 < each < 340 for each in places)


# In a browser

PROBE = """
<script>
const said = [];
addEventListener("error", event => said.push(String(event.message)));
addEventListener("securitypolicyviolation", event => said.push(event.violatedDirective));
const error = console.error;
console.error = (...words) => { said.push(words.join(" ")); error(...words); };
addEventListener("load", () => {
  const body = getComputedStyle(document.body), drawn = document.querySelector("svg text");
  const facts = {
    width: document.documentElement.scrollWidth, view: innerWidth, page: body.backgroundColor,
    text: body.color, drawn: getComputedStyle(drawn).fill, said: said,
    size: drawn.getBoundingClientRect().height,
    verdicts: [...document.querySelectorAll("td:last-child")].map(cell => {
      const box = cell.getBoundingClientRect();
      const shown = box.width > 0 && box.left >= 0 && box.right <= innerWidth;
      return shown ? cell.textContent : "hidden";
    }),
  };
  parent.document.title = JSON.stringify(facts);
});
</script>
"""


def browser(*flags: str, timeout: float = 300) -> str:
    assert CHROMIUM is not None
    common = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
    files = "--allow-file-access-from-files"
    # Chromium has a socket in its temporary folder, whose path must be short (unix(7)), and writes
    # to HOME whatever folder it is given for its data.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as own:
        done = subprocess.run(
            [CHROMIUM, *common, files, *flags],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
            env={**os.environ, "TMPDIR": own, "HOME": own},
        )
    return done.stdout


@pytest.fixture(scope="module")
def probed(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of pages that show the report in frames of different widths, with a copy of
    the report that tells its layout."""
    # The window of a headless browser cannot be as narrow as a phone, a frame can.
    folder = tmp_path_factory.mktemp("browser")
    copy = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    (folder / "report.html").write_text(copy.replace("<title>", PROBE + "<title>"), "utf-8")
    for width in (360, 390, 1200):
        frame = f'<iframe src="report.html" width="{width}" height="3000"></iframe>'
        (folder / f"{width}.html").write_text(f"<!DOCTYPE html><title></title>{frame}")
    return folder


def layout(folder: Path, width: int, *flags: str) -> dict[str, object]:
    dumped = browser(
        *flags,
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=2000",
        "--dump-dom",
        (folder / f"{width}.html").as_uri(),
    )
    title = re.search(r"<title>(.*?)</title>", dumped, re.DOTALL)
    assert title, dumped[:500]
    facts: dict[str, object] = json.loads(unescape(title[1]))
    return facts


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@needs_chromium
def test_on_a_phone_the_page_does_not_scroll_sideways(probed: Path) -> None:
    facts = layout(probed, 360)
    assert facts["view"] == 360
    assert isinstance(facts["width"], int) and facts["width"] <= 360
    assert facts["said"] == []
    assert isinstance(facts["size"], (int, float)) and facts["size"] >= 9, "plots are legible"


@needs_chromium
@pytest.mark.parametrize("width", [390, 1200])
def test_every_verdict_is_visible(probed: Path, results: Results, width: int) -> None:
    shown = [row.verdict or "the default" for row in Summary(results).rows]
    assert layout(probed, width)["verdicts"] == shown


@needs_chromium
def test_colours_follow_the_theme(probed: Path) -> None:
    light, dark = (
        layout(probed, 1200, f"--blink-settings=preferredColorScheme={scheme}") for scheme in (1, 0)
    )
    for name in ("page", "text", "drawn"):
        assert light[name] != dark[name]
    assert light["page"] == "rgb(255, 255, 255)"


@needs_chromium
def test_a_screenshot_is_full_of_text_and_plots(html: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    shot = tmp_path / "shot.png"
    browser(
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={shot}",
        "--window-size=800,1600",
        (tmp_path / "report.html").as_uri(),
    )
    header = shot.read_bytes()[:24]
    assert [int.from_bytes(header[at : at + 4], "big") for at in (16, 20)] == [800, 1600]
    assert shot.stat().st_size > 30_000, "text and a plot; an empty page has 6 kB"
