"""axe-core over pages in headless Chromium, at two widths, light and dark; no gate, because axe-core comes from npm.

    npm install axe-core
    python docsite/accessibility.py --axe node_modules/axe-core/axe.min.js RUN/report.html .venv/site

Files and folders of HTML are taken; a folder stands for all pages in it. Ends with 1 if there is a finding that
axe-core calls serious or critical.
"""

import argparse
import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
GRAVE = ("serious", "critical")
RULES = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'], resultTypes: ['violations']}"


def main() -> int:
    """Check every page; the number of grave findings is printed last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axe", type=Path, required=True, help="axe.min.js of the npm package axe-core")
    parser.add_argument("pages", type=Path, nargs="+", help="HTML files, or folders of them")
    given = parser.parse_args()
    axe = given.axe.read_text(encoding="utf-8")
    path = os.environ.get("SLIMBIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    grave = 0
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for folder, file in files_of(given.pages):
            grave += check(browser, folder, file, axe)
    print(f"{grave} serious or critical findings")
    return 1 if grave else 0


def files_of(pages: list[Path]) -> Iterator[tuple[Path, str]]:
    """A folder to serve and a page in it."""
    for page in pages:
        if page.is_dir():
            yield from ((page, str(file.relative_to(page))) for file in sorted(page.rglob("*.html")))
        else:
            yield page.parent, page.name


def check(browser: Browser, folder: Path, file: str, axe: str) -> int:
    """Print the findings of one page; how many are grave."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Requests are no news."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    grave = 0
    for width in WIDTHS:
        for scheme in SCHEMES:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
            )
            page = context.new_page()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/{file}")
            page.wait_for_timeout(300)
            page.evaluate(axe)
            for found in page.evaluate(f"axe.run({RULES})")["violations"]:
                grave += found["impact"] in GRAVE
                print(f"{file} {width} {scheme}: {found['impact']}: {found['id']}: {found['help']}")
                for node in found["nodes"][:5]:
                    print(f"    {' '.join(map(str, node['target']))}: {' '.join(node['failureSummary'].split())[:240]}")
            if page.evaluate("document.documentElement.scrollWidth") > width:
                grave += 1
                print(f"{file} {width} {scheme}: serious: the page is wider than the window")
            context.close()
    server.shutdown()
    server.server_close()
    return grave


if __name__ == "__main__":
    raise SystemExit(main())
