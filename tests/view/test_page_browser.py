"""In a browser, where there is one: a page draws, tells what is under the pointer and stays smooth at 100,000 spans."""

import json
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread

import pytest

from penstock.cluster import Cluster
from penstock.costs import StageCosts
from penstock.schedules import one_f_one_b
from penstock.simulator import simulate
from penstock.view.page import page_html

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

TRY = """
<script>
const steps = [];
const wait = milliseconds => new Promise(done => setTimeout(done, milliseconds));
window.addEventListener("load", async () => {
  while (!Bokeh.documents.length) await wait(50);
  const models = [...Bokeh.documents[0]._all_models.values()];
  const draw = models.find(model => model.type == "CustomJS" && model.code.includes("penstock.draw"));
  const {panels, looks} = draw.args, [panel] = draw.args.panels;
  while (panel.image.data.image[0].length < 2) await wait(50);
  const [height, width] = panel.image.data.image[0].shape, range = panel.figure.x_range, end = range.end;
  const tell = (x, y) => ["title", "what", "when", "waited", "transfer"].map(
    line => penstock.tell(panel, looks, "s", {x, y}, line));
  const told = [tell(0.5, 0), tell(1.05, 1.2), tell(1.5, 1), tell(-1, 0)];
  for (let i = 1; i <= 15; i++) {
    const before = performance.now();
    range.setv({start: end / 3 * (1 - 0.7 ** i), end: end / 3 * (1 - 0.7 ** i) + end * 0.7 ** i});
    steps.push(performance.now() - before);
  }
  const colours = new Set(panel.image.data.image[0]).size;
  await fetch("/", {method: "POST", body: JSON.stringify({height, width, told, steps, colours})});
});
</script>
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    timeline = simulate(one_f_one_b(16, 3200), StageCosts(), Cluster.uniform(16, latency_seconds=0.1))
    assert len(timeline.spans) > 100_000
    return in_browser(page_html({"1f1b": timeline}) + TRY, tmp_path_factory.mktemp("profile"))


def in_browser(page: str, folder: Path) -> dict[str, list[float]]:
    """Returns what the page posts to where it comes from."""
    posted: Queue[str] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def do_POST(self) -> None:
            posted.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        address = f"http://127.0.0.1:{server.server_port}/"
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--window-size=1400,900"]
        command = [str(BROWSER), *options, "--remote-debugging-port=0", address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return json.loads(posted.get(timeout=60))
        finally:
            browser.terminate()
            browser.wait(20)
            server.shutdown()
            serving.join()


def test_a_row_of_pixels_a_rank_is_drawn_in_the_colours_of_what_runs(result: dict[str, list[float]]) -> None:
    assert result["width"] > 800
    assert result["height"] > 16 * 20
    assert result["colours"] > 3


def test_the_pointer_is_told_op_times_and_whom_it_waited_for(result: dict[str, list[float]]) -> None:
    first, second, waiting, outside = result["told"]
    assert first == [
        "0F0 on rank 0",
        "forward of microbatch 0, stage 0",
        "0 to 1 s, takes 1 s",
        "waited for nobody",
        "",
    ]
    assert second[:2] == ["rank 1 waits", "for rank 0, before 1F0"]
    assert second[3:] == ["1 s until it sends", "0.1 s for the message"]
    assert waiting[0] == "1F0 on rank 1"
    assert waiting[3:] == ["waited 1 s for rank 0", "0.1 s for the message from rank 0"]
    assert outside[0] == "rank 0 is idle"


def test_a_step_of_the_zoom_takes_a_fraction_of_a_second(result: dict[str, list[float]]) -> None:
    # What is ours of it: some 30 ms where nothing else runs; a glyph a bar takes above a second.
    assert sorted(result["steps"])[len(result["steps"]) // 2] < 250
