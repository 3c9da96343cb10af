"""The report: structure, escaping, and a look through a real browser where there is one."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from dynllava.analysis.pareto.kv_growth import Growth, crossovers
from dynllava.analysis.points.realised import published_shares, realised_share
from dynllava.analysis.report import data as report_data
from dynllava.analysis.report import overlay, svg_charts
from dynllava.analysis.report import write as report
from PIL import Image

from dynllava.cli import main
from dynllava.errors import UserError
from dynllava.records import Counted, Measured, RecordStore

EVIL = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>\"'&"


class Parser(html.parser.HTMLParser):
    """Collects tags and texts, and checks that elements are closed in order."""

    void = ("meta", "link", "img", "br", "input", "hr")

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.attributes, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.void:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.stack[-1] if self.stack else "", data))


def synthetic_overlay(label="synthetic", text="a circle", question="which shape?"):
    picture = Image.new("RGB", (24, 24), (200, 30, 30))
    return overlay.Overlay(
        "fastv", label, "synthetic-model", overlay.encode(picture), 4, (0, 5, 6), question, text,
        ((text, True), (" dropped", False)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def evil_store(tmp_path_factory):
    """A synthetic study whose every text is hostile."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location(
        "helpers", Path(__file__).with_name("conftest.py")
    )
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    folder = tmp_path_factory.mktemp("evil")
    store = RecordStore(folder)
    for method, value in (("full", 0.8), ("fastv", 0.7), ("random", 0.6)):
        record = helpers.make_record(method, task=f"task {EVIL}", value=value, model=f"m {EVIL}")
        store.append(record, helpers.make_samples([1, 0] * 20))
    shares = {
        "time_ratio_prefill": Measured(1.2, 0.1, 30, "1"),
        "realised_share_prefill": Measured(-0.4, 0.1, 30, "1"),
    }
    bench = helpers.make_record("fastv", model=f"m {EVIL}", measured=shares)
    counted = {"cost_ratio_prefill": Counted(0.5, "1", "counted", "prefill")}
    from dataclasses import replace

    store.append(replace(bench, kind="bench", scores={}, counted=counted,
                         task=replace(bench.task, metric=None)))  # fmt: skip
    synthetic_overlay(EVIL, EVIL, EVIL).write(folder / "overlays" / "evil.json")
    return folder


@pytest.fixture(scope="module")
def evil_page(evil_store, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    report.write_report(out, evil_store)
    return out


def test_hostile_text_stays_text(evil_page):
    parser = Parser()
    text = evil_page.read_text()
    parser.feed(text)
    assert parser.stack == []
    assert parser.tags.count("script") == 2
    assert not [item for item in parser.attributes if item[1].startswith("on")]
    shown = "".join(data for tag, data in parser.texts if tag not in ("script", "style"))
    assert EVIL in shown
    data = next(data for tag, data in parser.texts if tag == "script")
    assert "<" not in data
    # A model's name is the last part of its path.
    assert EVIL.rpartition("/")[2] in json.loads(data)["pages"][0]["title"]


def test_page_asks_nothing_of_the_network(evil_page):
    parser = Parser()
    parser.feed(evil_page.read_text())
    for tag, name, value in parser.attributes:
        if name in ("src", "href"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert "default-src 'none'" in evil_page.read_text()
    assert not re.search(r"@import|url\(", evil_page.read_text())


def test_page_has_every_section_and_table(evil_page):
    text = evil_page.read_text()
    for name in ("summary", "pareto", "verdicts", "own", "realised", "kv", "samples", "tables",
                 "provenance"):  # fmt: skip
        assert f'<section id="{name}">' in text
    for number in range(1, 18):
        assert f"<summary>Table {number} " in text
    assert "Against the dense model" in text
    assert "slower than dense" in text
    assert "<del> dropped</del>" in text


def test_markdown_twin(evil_page):
    text = evil_page.with_suffix(".md").read_text()
    assert "<script>" not in text
    assert "## Provenance" in text
    assert "hired-7b, 32x115" in text


def test_script_json_is_inert():
    text = report_data.script_json({"a": "</script><!--\u2028&"})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"a": "</script><!--\u2028&"}


def test_published_numbers_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "out.html"]) == 0
    text = (tmp_path / "out.html").read_text()
    assert "There are no own evaluation records." in text
    assert "No overlays are stored." in text


@pytest.mark.parametrize(
    ("out", "results", "word"),
    [
        ("x.txt", None, "ends in .html"),
        (".", None, "ends in .html"),
        ("x.html", "absent", "no such"),
    ],
)
def test_wrong_usage_writes_nothing(tmp_path, monkeypatch, capsys, out, results, word):
    monkeypatch.chdir(tmp_path)
    arguments = ["report", out] + (["--results", results] if results else [])
    assert main(arguments) == 2
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_realised_share_by_hand():
    assert realised_share(0.75, 0.5) == 0.5
    assert realised_share(1.2, 0.5) == pytest.approx(-0.4)
    assert realised_share(0.9, 0.97) is None
    share = next(item for item in published_shares() if item.method == "dynamic_llava I|T")
    assert share.value == pytest.approx((1 - 72.51 / 124.52) / (1 - 4.656 / 19.604), abs=1e-3)


def test_crossovers_are_found_once():
    first = Growth("a", "A", (0, 10, 20, 30), (1.0, 2.0, 3.0, 4.0))
    second = Growth("b", "B", (0, 10, 20, 30), (2.5, 2.5, 2.5, 2.5))
    assert [(c.before, c.after, c.outputs) for c in crossovers([first, second])] == [("A", "B", 20)]


def test_ticks_are_round():
    assert svg_charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg_charts.ticks(3, 3) == [3]


def test_overlay_round_trip_and_damage(tmp_path):
    item = synthetic_overlay()
    path = item.write(tmp_path / "overlays" / "a.json")
    assert overlay.read(path) == item
    good = json.loads(path.read_text())
    for change in (
        {"kept": [99]}, {"image": base64.b64encode(b"GIF").decode()}, {"overlay": 2}, {"words": [1]}
    ):  # fmt: skip
        path.write_text(json.dumps(good | change))
        with pytest.raises(UserError, match="no overlay"):
            overlay.read(path)
    path.write_text("{torn")
    found, notes = overlay.read_all(tmp_path)
    assert found == []
    assert len(notes) == 1


def test_overlay_picture_veils_dropped_patches_only():
    item = synthetic_overlay()
    picture = Image.open(io.BytesIO(overlay.draw(item))).convert("RGB")
    everything = overlay.Overlay(**{**vars(item), "kept": tuple(range(16))})
    full = Image.open(io.BytesIO(overlay.draw(everything))).convert("RGB")
    shown, doubled = (
        int((np.asarray(image) == (200, 30, 30)).all(axis=2).sum()) for image in (picture, full)
    )
    # The whole image once, and 3 of its 16 patches again.
    assert shown / doubled == pytest.approx((1 + 3 / 16) / 2, rel=0.03)


def test_overlay_picture_takes_any_text():
    assert overlay.draw(synthetic_overlay(text="x $5_000 ^ {")).startswith(b"\x89PNG")


# ---------------------------------------------------------------- in a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
browser = pytest.mark.skipif(
    CHROMIUM is None,
    reason=f"needs a browser: none of {', '.join(BROWSERS)} is on PATH (Debian: package chromium)",
)
PROBE = """
<script>
addEventListener("load", () => {
  const count = (curve) => document.querySelectorAll(`#plot [data-curve="${curve}"]`).length;
  const result = { before: count("fastv"), title: document.title };
  const texts = (svg) => [...svg.querySelectorAll("text")].map((t) => t.getBoundingClientRect());
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top
    || b.bottom <= a.top;
  result.cut = [...document.querySelectorAll("svg.chart, #plot svg")].flatMap((svg) => {
    const box = svg.getBoundingClientRect();
    return texts(svg).filter((t) => t.left < box.left - 1 || t.right > box.right + 1
      || t.top < box.top - 1 || t.bottom > box.bottom + 1)
      .map((t) => [t.left - box.left, t.top - box.top]);
  });
  const button = document.querySelector('#legend button[data-curve="fastv"]');
  button.click();
  result.hidden = count("fastv");
  result.pressed = button.getAttribute("aria-pressed");
  button.click();
  result.again = count("fastv");
  const axis = document.getElementById("axis");
  axis.value = "kv_bytes";
  axis.dispatchEvent(new Event("change"));
  result.axis = document.querySelector("#plot .axis").textContent;
  result.score = document.querySelector("#plot .axis.score").textContent;
  document.querySelector('#plot g[data-curve="fastv"]').dispatchEvent(new Event("pointerenter"));
  result.tip = document.getElementById("tooltip").textContent;
  const study = document.getElementById("page");
  study.value = [...study.options].find((o) => o.textContent.includes("three budgets")).value;
  study.dispatchEvent(new Event("change"));
  result.published = document.querySelectorAll("#plot .mark.published").length;
  const budgets = [...document.querySelectorAll("#plot .budget")];
  result.budgets = budgets.map((b) => b.textContent);
  const boxes = budgets.map((b) => b.getBoundingClientRect());
  result.covered = boxes.filter((a, i) => boxes.some((b, j) => j < i && !apart(a, b))).length;
  result.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  result.ready = document.documentElement.dataset.ready;
  const node = document.createElement("pre");
  node.id = "probe";
  node.textContent = JSON.stringify(result);
  document.body.append(node);
});
</script></body>"""


@browser
def test_page_works_in_a_narrow_browser(evil_page, tmp_path):
    # The page's policy runs its own script only: the probe needs it lifted in a copy.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", evil_page.read_text())
    copy = tmp_path / "page.html"
    copy.write_text(text.replace("</body>", PROBE))
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900",
         "--virtual-time-budget=3000", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert errors == []
    found = json.loads(html.unescape(re.search(r'id="probe">(.*?)</pre>', done.stdout, re.S)[1]))
    assert found["ready"] == "true"
    assert found["title"] == "Token sparsification report"
    assert found["before"] >= 1
    assert (found["hidden"], found["pressed"]) == (0, "false")
    assert found["again"] == found["before"]
    assert "KV cache" in found["axis"]
    assert "fastv" in found["tip"]
    assert found["published"] > 3
    assert found["overflow"] == 0
    assert "score" in found["score"] or "% of dense" in found["score"]
    assert set(found["budgets"]) == {"192", "128", "64"}
    assert found["covered"] == 0
    assert found["cut"] == []


@browser
def test_unchanged_page_has_no_console_errors(evil_page, tmp_path):
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
         evil_page.as_uri()],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert 'data-ready="true"' in done.stdout
