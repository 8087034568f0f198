"""The page of an estimate: what it says, that it fetches nothing, and how a browser shows it, wide and on a phone."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from flows.estimate import COUNTERS, SOURCES
from flows.figures import CAUSE_COLOURS, causes, roofline
from flows.page import PERFETTO_NOTE, TAGS, page, render

SMALL = ("--preset", "tiny", "--group", 16)

#: Workloads that differ in what the page must leave out or add.
WORKLOADS = {
    "two patterns": ("--pattern", "dense,2:4", "--prefill", 5, "--decode", 3),
    "prefill only": ("--prefill", 5, "--decode", 0, "--attention", "host"),
    "decode only": ("--prefill", 0, "--decode", 4, "--batch", 3, "--lm-head", "skip", "--attention", "skip"),
    "layers on the host": ("--pattern", "dense,1:4,2:4", "--lm-head", "fp16-host", "--attention", "host"),
}

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture
def estimated(nimble_json: Any, tiny_model: Path) -> Callable[[str], dict[str, Any]]:
    """Return the JSON object of one of the workloads."""

    def run(workload: str) -> dict[str, Any]:
        options = WORKLOADS[workload]
        if "--prefill" not in options:
            options = (*options, "--prefill", 5, "--decode", 3)
        return dict(nimble_json("estimate", *SMALL, "--model", tiny_model, *options))

    return run


class Parsed(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self._inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._inside):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """Text without scripts and styles, blanks made one."""
        return " ".join(" ".join(self.texts).split())


# -- what the page holds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", WORKLOADS)
def test_nothing_is_fetched(workload: str, estimated: Any) -> None:
    parsed = Parsed(page(estimated(workload)))
    fetching = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    assert [attribute for attribute in parsed.attributes if attribute[1] in fetching] == []
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(parsed.tags)
    policy = next(value for tag, name, value in parsed.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "url(" not in render(estimated(workload), "")


def test_headline_numbers_of_each_pattern(estimated: Any) -> None:
    document = estimated("two patterns")
    text = Parsed(render(document, "")).text
    for pattern in document["patterns"]:
        assert f"{pattern['tokens_per_second']:,.2f} tokens/s, decode" in text
        for field in ("ttft_seconds", "tpot_seconds"):
            # The times of so small a model are microseconds.
            assert f"{1e6 * pattern[field]:#.4g} µs" in text


def test_every_layer_is_in_the_tables(estimated: Any) -> None:
    document = estimated("layers on the host")
    text = Parsed(render(document, "")).text
    for pattern in document["patterns"]:
        for layer in pattern["layers"]:
            assert layer["name"] in text
            assert f"{layer['macs'] / 1e9:,.2f}" in text
            if layer["where"] == "core":
                assert f"{layer['cycles']:,.0f}" in text
                assert f"{layer['lane_use']:.1%}" in text


@pytest.mark.parametrize("workload", WORKLOADS)
def test_assumptions_and_units_are_said(workload: str, estimated: Any) -> None:
    document = estimated(workload)
    text = Parsed(render(document, "")).text
    for sentence in document["assumptions"]:
        assert " ".join(sentence.split()) in text
    assert "1 µs" in PERFETTO_NOTE
    assert PERFETTO_NOTE in text
    for word in ("Lane use", "Dense-equivalent use", *TAGS):
        assert word in text


class Watched(dict[str, str]):
    """Sources that remember which of them were asked for."""

    def __init__(self, sources: dict[str, str]) -> None:
        super().__init__(sources)
        self.asked: set[str] = set()

    def __getitem__(self, field: str) -> str:
        self.asked.add(field)
        return super().__getitem__(field)


def test_every_number_has_the_tag_of_its_source(estimated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.page._figures", lambda document: {})  # which hold no tags and take long
    document = estimated("two patterns")
    document["sources"] = Watched(document["sources"])
    before = Parsed(render(document, "")).text
    # The unpruned model's MACs stand on the page in dense_equivalent only.
    assert document["sources"].asked == set(SOURCES) - {"dense_macs"}
    for field in sorted(document["sources"].asked):
        changed = copy.copy(document)
        changed["sources"] = {**SOURCES, field: "measured on RTL"}
        if field not in ("macs", "bytes"):  # beside a tag of their own, these have a part in weaker ones
            assert Parsed(render(changed, "")).text.count("measured on RTL") > before.count("measured on RTL")


def test_a_derived_number_has_the_weakest_tag(estimated: Any) -> None:
    document = estimated("two patterns")
    document["sources"] = {**SOURCES, "macs": "measured on RTL", "bytes": "exact model", "seconds": "estimated"}
    text = Parsed(render(document, "")).text
    assert "MAC/B exact model" in text
    assert "GMAC/s estimated" in text


def test_names_are_text_and_never_markup(estimated: Any) -> None:
    document = estimated("two patterns")
    hostile = '</script><script>alert("1")</script><b>&amp;'
    plain = Parsed(render(document, ""))
    document["model"] = document["core"] = document["clock_source"] = hostile
    document["memory"]["name"] = hostile
    document["assumptions"].append(hostile)
    for pattern in document["patterns"]:
        pattern["pattern"] = hostile
        for layer in pattern["layers"]:
            layer["name"] = layer["pattern"] = hostile
    text = render(document, "")
    parsed = Parsed(text)
    assert parsed.tags.count("script") == plain.tags.count("script") == 3
    assert parsed.tags.count("b") == 0
    assert hostile in parsed.text
    start = text.index('id="figures">') + len('id="figures">')
    embedded = text[start : text.index("</script>", start)]
    assert "<" not in embedded  # not even of the names, which figures escape
    figures = json.loads(embedded)
    # Plotly reads tags in texts, which are therefore escaped once more.
    point = figures["detail"][0]["prefill"]["roofline"]["layout"]["meta"]["points"][0]
    assert point["name"].startswith("1 &lt;/script&gt;")


def test_a_failing_write_leaves_the_old_page(refusal: Any, tiny_model: Path, tmp_path: Path) -> None:
    options = ("estimate", *SMALL, "--model", tiny_model, "--prefill", 5, "--decode", 0)
    assert refusal(*options, "--html", tmp_path) == (
        f"Cannot write {tmp_path}: it is a directory; give the name of a file."
    )
    assert list(tmp_path.glob("*.part")) == []


def test_pages_and_traces_are_of_models(refusal: Any, tmp_path: Path) -> None:
    assert refusal("estimate", "--topology", tmp_path / "layers.csv", "--html", "page.html") == (
        "--html belongs to --model and has no meaning with --topology."
    )


# -- figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", WORKLOADS)
def test_roofline_has_each_layer_once_and_none_of_the_core_above_it(workload: str, estimated: Any) -> None:
    document = estimated(workload)
    peak = document["multipliers"] * document["clock_mhz"] / 1e3
    for pattern in document["patterns"]:
        for phase in set(pattern["phases"]) - {"total"}:
            figure = roofline(document, pattern, phase)
            layers = [layer for layer in pattern["layers"] if layer["phase"] == phase]
            drawn = [
                point
                for trace in figure["data"]
                if trace["mode"] == "markers"
                for point in zip(trace["x"], trace["y"], strict=True)
            ]
            useful = [
                (layer["macs"] / (layer["calls"] * layer["bytes"]), layer["macs"] / layer["seconds"] / 1e9)
                for layer in layers
            ]
            assert np.array(sorted(drawn)) == pytest.approx(np.array(sorted(useful)))
            for layer, (x, y) in zip(layers, useful, strict=True):
                if layer["where"] == "core":
                    assert y <= min(document["memory"]["bandwidth_gb_s"] * x, peak) * (1 + 1e-9)
            assert len(figure["layout"]["meta"]["points"]) == len(layers)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_causes_are_all_drawn_and_sum_to_the_cycles(workload: str, estimated: Any) -> None:
    document = estimated(workload)
    for pattern in document["patterns"]:
        for phase in set(pattern["phases"]) - {"total"}:
            core = [layer for layer in pattern["layers"] if layer["phase"] == phase and layer["where"] == "core"]
            cycles, shares = (causes(pattern, phase, share=share) for share in (False, True))
            assert [trace["name"] for trace in cycles["data"]] == list(CAUSE_COLOURS)
            sums = np.sum([trace["x"] for trace in cycles["data"]], axis=0)
            assert sums.tolist() == [layer["calls"] * layer["cycles"] for layer in core]
            assert np.sum([trace["x"] for trace in shares["data"]], axis=0) == pytest.approx(1)


def test_a_phase_that_is_all_on_the_host_has_no_cycles(estimated: Any) -> None:
    pattern = estimated("layers on the host")["patterns"][0]
    pattern["layers"] = [layer for layer in pattern["layers"] if layer["where"] == "host"]
    assert causes(pattern, "decode", share=True) is None


#: Linear RGB as it is seen without one kind of cones (Machado, Oliveira and Fernandes 2009, severity 1).
COLOUR_BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def oklab(linear: np.ndarray) -> np.ndarray:
    """Perceptual coordinates of linear RGB (Ottosson 2020)."""
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
             [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    opponent = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.array(opponent) @ np.cbrt(np.array(cones) @ np.clip(linear, 0, 1))


@pytest.mark.parametrize("blindness", COLOUR_BLINDNESS)
def test_causes_have_colours_that_everybody_can_tell_apart(blindness: str) -> None:
    assert set(CAUSE_COLOURS) == set(COUNTERS)
    seen = {}
    for cause, colour in CAUSE_COLOURS.items():
        rgb = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen[cause] = oklab(np.array(COLOUR_BLINDNESS[blindness]) @ linear)
    seen["paper"] = oklab(np.ones(3))
    for one, other in combinations(seen, 2):
        # Of Okabe and Ito's eight colours, the closest pair is 0.08 apart in the worst of the four ways.
        assert np.linalg.norm(seen[one] - seen[other]) > 0.1, f"{one} and {other} look alike"


# -- in a browser --------------------------------------------------------------------------------------------

#: What the page in its frame tells of itself, for each choice of pattern and phase.
PROBE = """
<script>{
const problems = [];
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => problems.push("blocked " + event.blockedURI));
console.error = console.warn = (...words) => problems.push(words.join(" "));
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const shown = (selector) => [...document.querySelectorAll(selector)].filter((element) => element.checkVisibility());
async function drawn() {
  do await pause(200); while (document.documentElement.dataset.drawn !== "yes");
}
function state() {
  const overlaps = [], clipped = [], small = [];
  for (const plot of shown("[data-plot]")) {
    const frame = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("svg text")].filter((text) => text.textContent.trim());
    const boxes = texts.map((text) => [text.textContent, text.getBoundingClientRect()]);
    for (const [name, box] of boxes) {
      const inside = box.left >= frame.left - 1 && box.right <= frame.right + 1;
      if (!inside || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) clipped.push(name);
    }
    for (let i = 0; i < boxes.length; i++)
      for (let j = 0; j < i; j++) if (meet(boxes[i][1], boxes[j][1])) overlaps.push([boxes[j][0], boxes[i][0]]);
  }
  for (const text of shown("main *")) {
    const own = [...text.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (own && parseFloat(getComputedStyle(text).fontSize) < 11) small.push(text.textContent);
  }
  const root = document.documentElement;
  return {
    points: document.querySelectorAll('[data-plot$=roofline] .scatterlayer path.point').length,
    labels: document.querySelectorAll('[data-plot$=roofline] .annotation').length,
    cycles: shown('[data-plot$=cycles] .barlayer .point').length,
    share: shown('[data-plot$=share] .barlayer .point').length,
    comparison: document.querySelectorAll('[data-plot^=comparison] .barlayer .point').length,
    tables: shown("main .scroll table").length,
    buttons: document.querySelectorAll("main a, .modebar-btn").length,
    scroll: root.scrollWidth, width: root.clientWidth, overlaps, clipped, small, text: document.body.innerText,
  };
}
addEventListener("message", async () => {
  const states = {};
  dispatchEvent(new Event("resize"));  // which a browser that draws no frames does not send
  await pause(300);
  await drawn();
  for (const pattern of document.querySelectorAll("input[name=pattern]"))
    for (const phase of document.querySelectorAll("input[name=phase]")) {
      pattern.click();
      phase.click();
      await drawn();
      states[pattern.value + " " + phase.value] = state();
    }
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  parent.postMessage(JSON.stringify({ states, problems, fetched }), "*");
});
}</script>
"""

#: The page in frames of given widths, as a browser's own window is never as narrow as a phone.
FRAMES = """<!DOCTYPE html>
<body style="margin:0"><iframe style="border:0;height:900px"></iframe><script>
const frame = document.querySelector("iframe");
const widths = WIDTHS;
const told = {};
frame.style.width = widths[0] + "px";
frame.src = "page.html";
let turn = 0;
addEventListener("message", (event) => {
  told[widths[turn++]] = JSON.parse(event.data);
  document.documentElement.dataset.told = encodeURIComponent(JSON.stringify(told));
  if (turn < widths.length) {
    frame.style.width = widths[turn] + "px";
    frame.contentWindow.postMessage("", "*");
  }
});
frame.addEventListener("load", () => frame.contentWindow.postMessage("", "*"));
</script></body>"""


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., str]:
    """Run a headless browser without network on a page of a folder and return what it prints."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"no browser on PATH: none of {', '.join(BROWSERS)}")

    def run(name: str, *options: str) -> str:
        command = [
            found, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
            "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={tmp_path / 'profile'}", *options, (tmp_path / name).as_uri(),
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def told_by(browser: Callable[..., str], folder: Path, text: str, widths: list[int]) -> dict[str, Any]:
    """What a page tells of itself in frames of these widths, one after the other."""
    (folder / "page.html").write_text(text.replace("<title>", PROBE + "<title>", 1), encoding="utf-8")
    (folder / "frames.html").write_text(FRAMES.replace("WIDTHS", json.dumps(widths)), encoding="utf-8")
    dumped = browser("frames.html", "--window-size=1300,950", "--virtual-time-budget=60000", "--dump-dom")
    told = next(value for _, name, value in Parsed(dumped).attributes if name == "data-told")
    return dict(json.loads(unquote(told)))


@pytest.mark.parametrize("workload", ["two patterns", "layers on the host", "prefill only"])
def test_page_in_a_browser(workload: str, browser: Any, estimated: Any, tmp_path: Path) -> None:
    document = estimated(workload)
    told = told_by(browser, tmp_path, page(document), [1280, 375])
    phases = [phase for phase in ("prefill", "decode") if document[phase]]
    for width, report in told.items():
        assert report["problems"] == []
        assert report["fetched"] == []
        assert set(report["states"]) == {f"{n} {phase}" for n in range(len(document["patterns"])) for phase in phases}
        for choice, state in report["states"].items():
            number, phase = choice.split()
            layers = [layer for layer in document["patterns"][int(number)]["layers"] if layer["phase"] == phase]
            core = [layer for layer in layers if layer["where"] == "core"]
            assert state["points"] == len(layers)
            limits = roofline(document, document["patterns"][int(number)], phase)["layout"]["meta"]["limits"]
            assert state["labels"] == len(layers) + len(limits)
            assert state["cycles"] == state["share"] == len(core) * len(COUNTERS)
            assert state["comparison"] == (len(document["patterns"]) > 1) * len(document["patterns"]) * (
                len(phases) + 1
            )
            assert state["tables"] == 3
            assert state["buttons"] == 0  # links to Plotly's makers among them
            assert state["width"] == int(width)
            assert state["scroll"] <= state["width"]
            assert state["overlaps"] == []
            assert state["clipped"] == []
            assert state["small"] == []
            assert not {"NaN", "undefined", "Infinity"} & set(state["text"].split())
    assert set(told) == {"1280", "375"}


def pixels(png: bytes) -> np.ndarray:
    """Decode a PNG of 8-bit RGB or RGBA without interlacing, as browsers write it (ISO/IEC 15948)."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    packed, at = b"", 8
    while at < len(png):
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        content = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height = int.from_bytes(content[:4], "big"), int.from_bytes(content[4:8], "big")
            assert (content[8], content[12]) == (8, 0)
            channels = {2: 3, 6: 4}[content[9]]
        elif kind == b"IDAT":
            packed += content
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    image = np.zeros((height + 1, width + 1, channels), np.int64)  # a row above and a column before, of zeros
    for y, row in enumerate(rows, 1):
        line = row[1:].reshape(width, channels).astype(np.int64)
        above = image[y - 1, 1:]
        if row[0] in (0, 2):
            image[y, 1:] = line + above * (row[0] == 2)
        elif row[0] == 1:
            image[y, 1:] = np.cumsum(line, axis=0)
        else:
            for x in range(width):
                left, up, corner = image[y, x], above[x], image[y - 1, x]
                if row[0] == 3:
                    guess = (left + up) // 2
                else:
                    far = np.abs([up - corner, left - corner, left + up - 2 * corner])
                    guess = np.choose(np.argmin(far, axis=0), [left, up, corner])
                image[y, x + 1] = (line[x] + guess) % 256
        image[y] %= 256
    return image[1:, 1:, :3]


def test_screenshot_shows_the_plots(browser: Any, estimated: Any, tmp_path: Path) -> None:
    text = page(estimated("two patterns"))
    # Only the bars' section is shown, which leaves no doubt about what the colours are of.
    style = (
        "<style>section:not(:has(.plot)), .panel:not(:has([data-plot*=causes], [data-plot$=cycles])) {display: none}"
    )
    (tmp_path / "page.html").write_text(text.replace("</head>", style + "</style></head>", 1), encoding="utf-8")
    shot = tmp_path / "page.png"
    browser("page.html", "--window-size=600,1400", "--virtual-time-budget=20000", f"--screenshot={shot}")
    image = pixels(shot.read_bytes())
    assert image.shape == (1400, 600, 3)
    background = (image == image[0, 0]).all(axis=-1).mean()
    assert 0.05 < background < 0.95
    busy = np.array([int(CAUSE_COLOURS["busy"][n : n + 2], 16) for n in (1, 3, 5)])
    assert (image == busy).all(axis=-1).mean() > 0.01
