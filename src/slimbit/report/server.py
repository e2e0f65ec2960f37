"""Serve the report of a run under way on this machine's loopback address: standard library only."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError, SlimbitError
from slimbit.records.point import FrontierPoint
from slimbit.report.html import composed, embedded, entity_tag
from slimbit.report.page import ReportSource, contents, data_of, page

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
EVERY = 2.0
"""Seconds between two looks at the run."""

Sources = Callable[[], ReportSource]


@dataclass(frozen=True, kw_only=True)
class Served:
    """What requests are answered with.

    Attributes:
        page: The HTML text.
        data: JSON of what the page draws; "" before there is anything to draw.
        fault: Why the run cannot be read just now, "" where it can.
    """

    page: str
    data: str = ""
    fault: str = ""


class LiveReport:
    """The report of a run as it grows: read by one thread, delivered by others.

    Attributes:
        served: What it is now.
    """

    def __init__(self, source: Sources) -> None:
        self._source = source
        self._seen: object = None
        self._costs: dict[str, CostReport] = {}
        self.served = Served(page=waiting_page("no point is finished yet"))

    def update(self) -> None:
        """Look at the run; where it cannot be read, what was read before stays."""
        try:
            source = self._source()
            seen = (source.missing, [(p.number, p.state) for p in source.points], source.exported)
            if seen != self._seen and any(point.state == "done" for point in source.points):
                self.served = self._made(source)
                self._seen = seen
            elif self.served.fault:
                self.served = replace(self.served, fault="")
        except SlimbitError as error:
            self.served = replace(self.served, fault=str(error))
            if not self.served.data:
                self.served = replace(self.served, page=waiting_page(str(error)))

    def _made(self, source: ReportSource) -> Served:
        source = replace(source, read_cost=partial(self._cost, source.read_cost))
        drawn = data_of(source)
        data = embedded(contents(drawn, source.exported, hardware=source.hardware))
        text = page(drawn, source.exported, hardware=source.hardware, watch=entity_tag(data))
        return Served(page=text, data=data)

    def _cost(self, read: Callable[[FrontierPoint], CostReport], point: FrontierPoint) -> CostReport:
        """A cost report never changes: each is read once."""
        digest = point.objects["cost"]
        if digest not in self._costs:
            self._costs[digest] = read(point)
        return self._costs[digest]


def watch(source: Sources, port: int, started: Callable[[str], None]) -> None:
    """Serve the report of a run until the program is interrupted, for this machine alone.

    Args:
        source: Reads the run.
        port: Of the loopback address; 0 for any that is free.
        started: Called with the address once it is served.

    Raises:
        InputError: The port is taken or not allowed.
    """
    live = LiveReport(source)
    live.update()
    server = report_server(live, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        started(f"http://{HOST}:{server.server_address[1]}/")
        while True:
            time.sleep(EVERY)
            live.update()
    except KeyboardInterrupt:
        return
    finally:
        server.shutdown()
        server.server_close()


def report_server(live: LiveReport, port: int) -> ThreadingHTTPServer:
    """A server of a live report, which ``serve_forever`` starts.

    ``GET /`` gives the page and ``GET /data`` what it draws, which the page asks for again and again; 304 where nothing
    changed. A request under another name than this machine's is refused, so that no page of the web reads a run through
    a name that leads here.

    Args:
        live: What to serve.
        port: Of the loopback address; 0 for any that is free.

    Raises:
        InputError: The port is taken or not allowed.
    """

    class Handler(_Handler):
        served = property(lambda _: live.served)

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port must be a free one of {HOST}, got {port}: {error}") from error


def waiting_page(why: str) -> str:
    """The page before there is a report; it asks again by itself."""
    return composed("waiting", title="Waiting for the run", data={}, still=f"Nothing to show yet: {escape(why)}.")


class _Handler(BaseHTTPRequestHandler):
    served: Any

    def do_GET(self) -> None:
        served: Served = self.served
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in NAMES:
            self._answer(HTTPStatus.FORBIDDEN, "plain", "this page is for the machine that serves it")
        elif self.path == "/":
            self._answer(HTTPStatus.OK, "html", served.page)
        elif self.path != "/data":
            self._answer(HTTPStatus.NOT_FOUND, "plain", "there are only / and /data")
        elif served.fault or not served.data:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "plain", served.fault or "no point is finished yet")
        else:
            self._answer(HTTPStatus.OK, "json", served.data)

    def _answer(self, status: HTTPStatus, kind: Literal["plain", "html", "json"], text: str) -> None:
        content, tag = text.encode(), entity_tag(text)
        if status == HTTPStatus.OK and self.headers.get("If-None-Match") == tag:
            status, content = HTTPStatus.NOT_MODIFIED, b""
        media = "application/json" if kind == "json" else f"text/{kind}; charset=utf-8"
        self.send_response(status)
        for name, value in (
            HEADERS | {"Content-Type": media, "Content-Length": str(len(content)), "ETag": tag}
        ).items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # the browser has gone on
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Requests are no news."""
