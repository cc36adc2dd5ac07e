"""The page in a browser: Debian's chromium without a window. Skipped where there is none on PATH."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backdoor_audit.report.html import page
from tests.subjects.parsed import Page
from tests.subjects.whole_records import whole_record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
)
# The browser's own errands, which no switch turns off altogether; no page is served from there.
OWN_ERRANDS = re.compile(
    r"(https?://)?(accounts|clients\d*|content-autofill|edgedl\.me|optimizationguide-pa|redirector|safebrowsing|update|www)"
    r"\.(google|googleapis|gvt1)\.com[:/]"
)
PROBE = """
const told = {};
const index = document.querySelector("table.matrix");
const rows = () => [...index.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const [button] = index.querySelectorAll("thead th:nth-child(2) button");
button.click();
told.ascending = rows();
button.click();
told.descending = rows();
told.sorted = index.querySelector("thead th:nth-child(2)").getAttribute("aria-sort");
told.said = document.getElementById("status").textContent;
const items = document.getElementById("item-table");
const listed = () => [...items.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const form = document.querySelector(`form[data-for="${items.id}"]`);
form.querySelector("select").value = "fail";
form.querySelector("select").dispatchEvent(new Event("change"));
told.failing = listed();
told.counted = form.querySelector("output").textContent;
form.querySelector("select").value = "";
form.querySelector("input").value = "STRIPES-class_2";
form.querySelector("input").dispatchEvent(new Event("input"));
told.found = listed();
const gallery = document.querySelector("ul.gallery");
const order = document.querySelector("select.order");
order.value = "size";
order.dispatchEvent(new Event("change"));
told.gallery = [...gallery.children].map((card) => card.querySelector(".name").textContent);
const enlarge = document.querySelector("button.enlarge");
enlarge.focus();
enlarge.click();
const dialog = document.getElementById("enlarged");
told.open = dialog.open;
told.enlarged = dialog.querySelector("img").alt;
told.widths = [enlarge.querySelector("img").width, dialog.querySelector("img").width];
told.inside = dialog.contains(document.activeElement);
dialog.querySelector("button").click();
told.closed = !dialog.open;
told.back = document.activeElement === enlarge;
told.wide = document.documentElement.scrollWidth <= window.innerWidth;
window.dispatchEvent(new Event("beforeprint"));
told.folded = document.querySelectorAll("details:not([open])").length;
window.dispatchEvent(new Event("afterprint"));
told.again = document.querySelectorAll("details:not([open])").length;
document.documentElement.dataset.told = JSON.stringify(told);
"""

IN_A_FRAME = """
if (window === window.top) {
  const frame = document.createElement("iframe");
  frame.width = SIZE;
  frame.height = 900;
  window.addEventListener("message", (event) => { document.documentElement.dataset.told = event.data; });
  frame.src = location.href;
  document.body.replaceChildren(frame);
} else {
  const tell = (told) => window.parent.postMessage(JSON.stringify(told), "*");
  MEASURE
}
"""


def framed(measure: str, width: int) -> str:
    """A probe that measures in a frame of that width and of 900 px height."""
    return IN_A_FRAME.replace("SIZE", str(width)).replace("MEASURE", measure)


NARROW = """
const edges = [...document.querySelectorAll(".pair figcaption, .pair img")].map((one) => one.getBoundingClientRect());
const shown = edges.filter((box) => box.width > 0);
const edge = document.documentElement.clientWidth;
const wide = document.documentElement.scrollWidth <= edge;
tell({seen: shown.length, cut: shown.filter((box) => box.right > edge).length, wide});
"""
LANDING = """
(async () => {
  const landed = {};
  for (const link of document.querySelectorAll("nav a")) {
    link.click();
    await new Promise((done) => setTimeout(done, 60));
    landed[link.hash] = Math.round(document.getElementById(link.hash.slice(1)).getBoundingClientRect().top);
  }
  tell(landed);
})();
"""
FIRST_SCREEN = """
const end = (selector) => document.querySelector(selector).getBoundingClientRect().bottom;
tell({verdict: end(".headline"), picture: end(".pair"), action: end(".steps"), limits: end(".limits")});
"""
AXE_RUN = """
document.querySelectorAll("details").forEach((one) => { one.open = true; });
axe.run().then((found) => {
  const violations = found.violations.map((one) => [one.id, one.nodes.map((node) => node.target.join(" ")).slice(0, 4)]);
  const rules = found.passes.length;
  document.documentElement.dataset.told = JSON.stringify({violations, rules});
});
"""
AXE = os.environ.get("BACKDOOR_AUDIT_AXE", "")
"""Path of an axe.min.js of axe-core, which does not come with this package."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")


@dataclass(frozen=True)
class Visit:
    """What one visit left: the page as the browser has it in the end, its console, and who was asked for anything."""

    html: str
    console: Sequence[str]
    requests: Sequence[str]

    @property
    def told(self) -> dict[str, Any]:
        """What the probe saw."""
        told: dict[str, Any] = json.loads(Page(self.html).all("html")[0].attributes["data-told"])
        return told


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A proxy that grants nothing and remembers what it was asked for."""
    asked: list[str] = []

    class Refusing(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        do_GET = do_POST = do_CONNECT = refuse  # noqa: N815 - the server's own names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def browse(folder: Path, file: Path, *more: str) -> subprocess.CompletedProcess[str]:
    profile = folder / f"profile-{file.stem}-{abs(hash(more))}"
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={profile}", *more, file.as_uri()]
    environment = {**os.environ, "HOME": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)


def visit(folder: Path, html: str, *, width: int, more: Sequence[str] = ()) -> Visit:
    file = folder / f"page-{width}.html"
    file.write_text(html, encoding="utf-8")
    with listening() as (port, asked):
        done = browse(
            folder,
            file,
            "--dump-dom",
            f"--window-size={width},1200",
            f"--proxy-server=http://127.0.0.1:{port}",
            *more,
        )
    return Visit(done.stdout, re.findall(r"CONSOLE.*", done.stderr), [to for to in asked if not OWN_ERRANDS.match(to)])


def probed(html: str, probe: str) -> str:
    """The same page with a script more, without the policy that would forbid it."""
    policy = Page(html).all("meta")[1].attributes["content"]
    assert policy.startswith("default-src")
    return (
        html.replace("default-src", "x-unknown", 1)
        .replace("script-src", "x-other", 1)
        .replace("style-src", "x-third", 1)
        .replace("</body>", f"<script>{probe}</script></body>")
    )


def screenshot(folder: Path, file: Path, name: str, *more: str) -> np.ndarray[Any, Any]:
    out = folder / f"{name}.png"
    browse(folder, file, f"--screenshot={out}", *more)
    return np.asarray(Image.open(out).convert("L"), dtype=float)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def html() -> str:
    return page(
        {"audit.json": whole_record(5, names=["<script>alert(1)</script>", *(f"sign {n}" for n in range(1, 5))])}
    )


@pytest.fixture(scope="module")
def plain(folder: Path, html: str) -> Visit:
    return visit(folder, html, width=1300)


@pytest.fixture(scope="module")
def used(folder: Path, html: str) -> dict[str, Any]:
    return visit(folder, probed(html, PROBE), width=600).told


def test_the_browser_has_nothing_to_complain_about_and_asks_nobody_for_anything(plain: Visit) -> None:
    assert plain.console == []
    assert plain.requests == []
    assert 'aria-label="Enlarge: held-out image' in plain.html  # the script ran


def test_a_page_that_does_load_something_or_breaks_would_be_noticed(folder: Path, html: str) -> None:
    broken = probed(
        html, "document.body.append(Object.assign(new Image(), {src: 'http://example.test/x.png'})); nothing();"
    )
    told = visit(folder, broken.replace("img-src", "x-fourth", 1), width=1301)
    assert told.requests == ["http://example.test/x.png"]
    assert any("nothing is not defined" in line for line in told.console)


def test_the_policy_stops_what_is_not_the_pages_own(folder: Path, html: str) -> None:
    attacked = html.replace(
        "</body>", "<script>document.title = 'mine'</script><img src='http://example.test/x.png'></body>"
    )
    told = visit(folder, attacked, width=1302)
    assert told.requests == []
    assert "<title>Backdoor audit of m.safetensors</title>" in told.html
    assert len(told.console) == 2


def test_a_table_is_sorted_by_its_heads(used: dict[str, Any]) -> None:
    ascending = [f"{number} (sign {number})" for number in (4, 2, 1)]
    assert used["ascending"] == [*ascending, "0 (<script>alert(1)</script>)", "3 (sign 3)", "all to all"]
    assert used["descending"][-5:] == ["3 (sign 3)", "0 (<script>alert(1)</script>)", *reversed(ascending)]
    assert used["sorted"] == "descending"
    assert used["said"] == "sorted by neural_cleanse, descending"


def test_a_table_is_filtered_by_verdict_and_by_words(used: dict[str, Any]) -> None:
    assert len(used["failing"]) == 8
    assert all("class_3" in name for name in used["failing"])
    assert used["counted"].startswith("8 of ")
    assert used["found"] == ["audit::test_anomaly_index[stripes-class_2]"]


def test_the_triggers_are_sorted(used: dict[str, Any]) -> None:
    assert used["gallery"][:2] == ["class 3 (sign 3) fail", "class 0 (<script>alert(1)</script>)"]
    assert used["gallery"][-1] == "class 4 (sign 4)"


def test_a_picture_is_enlarged_and_the_focus_comes_back(used: dict[str, Any]) -> None:
    assert used["open"]
    assert used["inside"]
    assert used["enlarged"].startswith("held-out image of class")
    small, large = used["widths"]
    assert large >= 3 * small
    assert used["closed"]
    assert used["back"]


def test_everything_is_unfolded_for_the_printer_and_folded_again(used: dict[str, Any]) -> None:
    assert used["folded"] == 0
    assert used["again"] > 0


def test_a_narrow_window_needs_no_scrolling_sideways(used: dict[str, Any]) -> None:
    assert used["wide"]


def test_on_a_telephone_no_prediction_is_cut_off(folder: Path, html: str) -> None:
    """The window cannot be narrower than 500 px there, so the page is shown in a frame of 400."""
    told = visit(folder, probed(html, framed(NARROW, 400)), width=800).told
    assert told["seen"] > 10
    assert told["cut"] == 0
    assert told["wide"]


@pytest.mark.parametrize("width", [400, 1024, 1440])
def test_every_link_of_the_menu_lands_where_it_says(folder: Path, html: str, width: int) -> None:
    landed = visit(folder, probed(html, framed(LANDING, width)), width=1600).told
    assert len(landed) > 10
    assert {name: place for name, place in landed.items() if not -1 <= place <= 20} == {}


def test_the_first_screen_has_verdict_picture_action_and_limits(folder: Path, html: str) -> None:
    ends = visit(folder, probed(html, framed(FIRST_SCREEN, 1440)), width=1600).told
    assert set(ends) == {"verdict", "picture", "action", "limits"}
    assert {name: end for name, end in ends.items() if not 0 < end <= 900} == {}


@pytest.mark.skipif(not AXE, reason="BACKDOOR_AUDIT_AXE names no axe.min.js")
@pytest.mark.parametrize("scheme", ["1", "0"], ids=["light", "dark"])
def test_axe_finds_no_violation(folder: Path, html: str, scheme: str) -> None:
    source = Path(AXE).read_text(encoding="utf-8").replace("</script", "<\\/script")
    told = visit(
        folder,
        probed(html, source + AXE_RUN),
        width=1440,
        more=(f"--blink-settings=preferredColorScheme={scheme}", "--virtual-time-budget=60000"),
    ).told
    assert told["rules"] > 30
    assert told["violations"] == []


def test_the_page_follows_the_scheme_of_the_reader(folder: Path, html: str) -> None:
    file = folder / "schemes.html"
    file.write_text(html, encoding="utf-8")
    light = screenshot(folder, file, "light", "--window-size=1300,1500", "--blink-settings=preferredColorScheme=1")
    dark = screenshot(folder, file, "dark", "--window-size=1300,1500", "--blink-settings=preferredColorScheme=0")
    assert light.shape == dark.shape == (1500, 1300)
    assert np.median(light) > 240
    assert np.median(dark) < 40
    assert light.std() > 15
    assert dark.std() > 15
