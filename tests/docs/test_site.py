"""The site in a browser: no page is wider than a phone, and none asks another host for anything."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar

import pytest

from tests.docs.pages import PAGES, ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SOURCES = ("docs", "lit_finetune", "callbacks", "datamodules", "mkdocs.yml", "CONTRIBUTING.md")
LOOK = """<!doctype html><body><script type="module">
const found = [];
for (const page of PAGES) {
  const frame = document.createElement("iframe");
  frame.style = "width: 360px; height: 800px; border: 0";
  frame.src = page;
  const loaded = new Promise(resolve => { frame.onload = resolve; });
  document.body.append(frame);
  await loaded;
  await new Promise(resolve => setTimeout(resolve, 50));
  const { document: inner, performance } = frame.contentWindow;
  const urls = performance.getEntriesByType("resource").map(entry => entry.name);
  found.push({ page, needs: inner.documentElement.scrollWidth, urls });
  frame.remove();
}
await fetch("found", { method: "POST", body: JSON.stringify(found) });
</script></body>"""


class Site(SimpleHTTPRequestHandler):
    """Gives the pages, and takes what the browser has found."""

    found: ClassVar[Queue[list[dict[str, Any]]]] = Queue()

    def do_POST(self) -> None:
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical", reason="needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    subprocess.run(command, cwd=folder, check=True, timeout=300, capture_output=True)
    return folder / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.long
def test_every_page_of_the_docs_is_on_the_site(site):
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}

    built = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}

    assert pages <= built


@pytest.mark.long
def test_no_page_scrolls_sideways_or_asks_another_host(site, address, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}")
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    (site / "look.html").write_text(LOOK.replace("PAGES", json.dumps(pages)))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={tmp_path}", "--remote-debugging-port=0"]
    log = tmp_path / "log.txt"

    with (
        log.open("w") as file,
        subprocess.Popen(
            [browser, *flags, f"{address}/look.html"], stderr=file, stdout=subprocess.DEVNULL
        ) as process,
    ):
        try:
            looks = Site.found.get(timeout=120)
        finally:
            process.terminate()

    assert len(looks) == len(pages)
    assert [look for look in looks if look["needs"] > 360] == []
    assert {url for look in looks for url in look["urls"] if not url.startswith(address)} == set()
    assert "CONSOLE" not in log.read_text()
