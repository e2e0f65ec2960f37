"""The report of a run under way: served on the loopback address, fresh as points are finished."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import pytest

from slimbit.frontier.frontier import open_run
from slimbit.records.errors import InputError
from slimbit.report.server import LiveReport, report_server


@pytest.fixture
def live(begun_run):
    run = open_run(begun_run.folder)
    return LiveReport(lambda: run.refresh().report_source())


@pytest.fixture
def address(live):
    server = report_server(live, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def get(url, **headers):
    """Status, headers and text of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def test_a_run_without_points_is_waited_for(live, address, grow):
    live.update()
    status, _, text = get(f"{address}/")
    assert status == 200
    assert "no point is finished yet" in text
    assert 'http-equiv="refresh"' in text
    assert get(f"{address}/data")[0] == 503
    grow(3)
    live.update()
    text = get(f"{address}/")[2]
    assert "connect-src 'self'" in text
    assert 'http-equiv="refresh"' not in text


def test_data_are_sent_when_they_changed(live, address, grow):
    grow(3)
    live.update()
    page = get(f"{address}/")[2]
    status, headers, text = get(f"{address}/data")
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    assert json.loads(page.split('id="data">')[1].split("</script>")[0])["watch"] == headers["ETag"]
    assert get(f"{address}/data", **{"If-None-Match": headers["ETag"]})[0] == 304
    live.update()
    assert get(f"{address}/data", **{"If-None-Match": headers["ETag"]})[0] == 304
    grow(12)
    live.update()
    status, _, text = get(f"{address}/data", **{"If-None-Match": headers["ETag"]})
    assert status == 200
    assert [point["name"] for point in json.loads(text)["report"]["points"]] == ["max_abs, 4 bits", "A"]


def test_a_run_that_cannot_be_read_is_said_and_the_page_stays(live, address, grow, begun_run):
    grow(3)
    live.update()
    before = get(f"{address}/")[2]
    grow(12)
    for file in (begun_run.folder / "objects").rglob("*.json"):
        file.write_bytes(file.read_bytes()[:-1])
    live.update()
    assert get(f"{address}/")[2] == before
    status, _, text = get(f"{address}/data")
    assert status == 503
    assert "objects" in text


def test_other_names_and_places_are_refused(live, address, grow):
    grow(3)
    live.update()
    assert get(f"{address}/", Host="evil.example")[0] == 403  # a name of the web that leads to the loopback address
    assert get(f"{address}/", Host="localhost:1")[0] == 200
    assert get(f"{address}/../run.json")[0] == 404
    request = urllib.request.Request(f"{address}/", data=b"x")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(request, timeout=10)


def test_a_port_that_is_taken_is_named(live):
    with report_server(live, 0) as server:
        assert isinstance(server, ThreadingHTTPServer)
        with pytest.raises(InputError, match=r"--port must be a free one of 127.0.0.1, got \d+: "):
            report_server(live, server.server_address[1])


def test_the_command_serves_until_it_is_interrupted(stored_run):
    command = [sys.executable, "-m", "slimbit", "report", str(stored_run), "--watch", "--port", "0"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests that run in the background ignore it, and so would it
    try:
        started = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert line.endswith("/ (Ctrl-C ends)\n")
        assert "resnet20" in get(line.removesuffix(" (Ctrl-C ends)\n").split(": ")[1])[2]
        started.send_signal(signal.SIGINT)
        rest, _ = started.communicate(timeout=20)
    finally:
        started.kill()
        started.wait()
    assert (started.returncode, rest) == (0, "ended\n")


def test_the_page_follows_the_run(browser, live, address, grow):
    for number in (3, 12):
        grow(number)
    live.update()
    shown = browser.new_page()
    complaints: list[str] = []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.goto(address)
    shown.locator("#metrics button", has_text="ESN analog").click()
    shown.locator("#points .pick").get_by_text("A", exact=True).click()
    assert "2 points and 7 points for comparison" in shown.locator("#missing").inner_text()
    grow(15)
    live.update()
    shown.locator("#points-body tr").nth(2).wait_for(timeout=20_000)
    assert shown.locator("#metrics [aria-selected=true]").inner_text() == "ESN analog"
    assert shown.locator("#point-title").inner_text().startswith("B: 90.00 %")  # the same point; a cheaper one is A now
    assert "updated at" in shown.locator("#watch").inner_text()
    assert complaints == []
    shown.close()
