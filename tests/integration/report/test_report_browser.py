"""The report in headless Chromium: no error, no network, points clickable, readable, nothing injected."""

import csv
import dataclasses
import json

import pytest

from slimbit.report.frames import report_data
from slimbit.report.page import page

HOSTILE = "</script><img src=x onerror=\"window.injected=1\"><a href='javascript:window.injected=1'>%{x}</a>"


@pytest.fixture(scope="module")
def report_file(tmp_path_factory, run_of):
    run = run_of()
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page(report_data(run.about, run.points, run.read_cost)), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def pages(browser):
    """Opens a file at a size, once for all tests: reading five megabytes of script takes longer than any test.

    Every page keeps its console messages, script errors and requests in ``complaints``.
    """
    opened = {}

    def open_page(file, *, width=1280, scheme="light"):
        key = (file, width, scheme)
        if key not in opened:
            opened[key] = shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            shown.complaints = complaints = []
            shown.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
            shown.on("pageerror", lambda error: complaints.append(str(error)))
            shown.on("request", lambda asked: complaints.append(asked.url) if asked.url != file.as_uri() else None)
            shown.goto(file.as_uri())
            shown.wait_for_selector("#accuracy .point", state="attached")
            shown.wait_for_selector("#histogram .point", state="attached")
        return opened[key]

    yield open_page
    for shown in opened.values():
        shown.close()


@pytest.fixture
def open_page(pages):
    """Like ``pages``; fails after the test on any complaint."""
    used = []
    yield lambda *args, **kwargs: used.append(pages(*args, **kwargs)) or used[-1]
    assert [shown.complaints for shown in used] == [[] for _ in used]


@pytest.fixture(scope="module")
def exported_report(tmp_path_factory, run_of, file_of):
    run = run_of()
    file = tmp_path_factory.mktemp("exported") / "report.html"
    files = [file_of(8), file_of(9, exact=False, name=HOSTILE)]
    file.write_text(page(report_data(run.about, run.points, run.read_cost), files), encoding="utf-8")
    return file


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_exported_files_are_a_section(open_page, exported_report, width, scheme):
    shown = open_page(exported_report, width=width, scheme=scheme)
    assert shown.locator("#exported").is_visible()
    assert shown.locator("#file option").all_text_contents()[0] == "small.onnx: point J"
    shown.select_option("#file", "0")
    assert shown.locator("#file-verdict").text_content().startswith("Exact: of 200 images, 200 are equal bit for bit")
    assert "2.00" in shown.locator("#file-latencies tr").first.text_content()
    assert shown.locator("#file-operations-text").text_content().startswith("2 operations run in integers, 0 in floats")
    shown.select_option("#file", "1")
    assert shown.locator("#file-verdict").text_content().startswith("NOT exact: of 200 images, 198")
    assert shown.locator("#file-operations tr").first.text_content() == "softmaxSoftmaxSoftmaxfloats"
    assert shown.locator("#file-differences tr").first.text_content() == "layer1.0.relu3"
    assert shown.locator("#file-saturation tr").first.text_content() == "layer1.0.conv112764,770no"
    assert "2 of 40 answers change" in shown.locator("#file-saturation-text").text_content()
    assert not shown.locator("#file-times").is_visible()
    assert shown.evaluate("window.injected") is None
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_a_report_without_files_has_no_such_section(open_page, report_file):
    assert not open_page(report_file).locator("#exported").is_visible()


def pick_button(shown, name):
    """The button of the table that chooses the point of that name."""
    return shown.locator("#points .pick").get_by_text(name, exact=True)


def start_over(shown):
    """The metric and the point that the report opens with."""
    shown.locator("#metrics button").first.click()
    pick_button(shown, "H").click()
    shown.locator("#accuracy").scroll_into_view_if_needed()


def markers(shown, trace):
    """The points of the trace at that place, in its order."""
    return shown.locator("#accuracy .scatterlayer .trace").nth(trace).locator(".points path")


@pytest.mark.parametrize("width", [1280, 400])
def test_readable_at_width(open_page, report_file, width):
    shown = open_page(report_file, width=width)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.locator("#hero .value").first.inner_text().endswith("\N{MULTIPLICATION SIGN}")
    smallest = shown.evaluate(
        "Math.min(...[...document.querySelectorAll('main *')].filter((e) => e.children.length === 0 && e.textContent"
        ".trim() && !e.closest('.chart')).map((e) => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 12
    inside = shown.evaluate(
        "[...document.querySelectorAll('#accuracy .xtick text, #accuracy .legend text, #histogram text')]"
        ".every((e) => { const r = e.getBoundingClientRect(); return r.left >= 0 && r.right <= innerWidth; })"
    )
    assert inside


@pytest.mark.parametrize("width", [1280, 400])
def test_the_plot_stays_high_and_its_letters_apart(open_page, report_file, width):
    shown = open_page(report_file, width=width)
    shown.wait_for_timeout(200)  # the chart grows by what its legend needs
    assert shown.evaluate("document.getElementById('accuracy')._fullLayout._size.h") >= 300
    assert shown.locator("#point-title").inner_text().startswith("G: 90.80 %")  # 1 point below 91.73, no baseline
    assert "2 points below 77 % are not shown" in shown.locator("#metric-text").inner_text()
    boxes = shown.evaluate(
        "[...document.querySelectorAll('#accuracy .textpoint text, #accuracy .annotation-text-g')]"
        ".map((e) => e.getBoundingClientRect()).map((r) => [r.left, r.top, r.right, r.bottom])"
    )
    assert len(boxes) > 5
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:i]:
            assert right <= other[0] + 1 or other[2] <= left + 1 or bottom <= other[1] + 3 or other[3] <= top + 3
    height = shown.evaluate("[...document.querySelectorAll('#pick-budget .word')].map((e) => e.offsetHeight)")
    assert max(height) < 30  # no option is broken at its hyphens


def test_clicking_a_point_changes_the_layers(open_page, report_file):
    shown = open_page(report_file)
    start_over(shown)
    before = shown.locator("#layers").inner_text(), shown.locator("#histogram").get_attribute("aria-label")
    box = markers(shown, 2).nth(2).bounding_box()  # baselines from the cheapest: 2, 3, 4 bits
    shown.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.wait_for_function("document.getElementById('point-title').textContent.startsWith('max_abs, 4 bits: 86.35')")
    assert "number 3" in shown.locator("#point-facts").inner_text()
    assert (shown.locator("#layers").inner_text(), shown.locator("#histogram").get_attribute("aria-label")) != before
    assert "22.8" in shown.locator("#layers").inner_text()  # 10 log10(3 * 4^3) dB
    assert "--min-accuracy 86.35" in shown.locator("#pick-accuracy").inner_text()
    assert shown.locator("#points tr[aria-current=true] .pick").inner_text() == "max_abs, 4 bits"


def test_hovering_shows_every_cost(open_page, report_file):
    shown = open_page(report_file)
    start_over(shown)
    box = markers(shown, 2).nth(2).bounding_box()
    shown.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    shown.wait_for_selector("#accuracy .hovertext")
    text = shown.locator("#accuracy .hovertext").text_content()
    for label in ("ESN digital", "ESN analog", "ESN filter-wise", "Bit operations", "Weight bytes", "Non-zero MACs"):
        assert label in text


def test_keyboard_alone_chooses_metric_and_point(open_page, report_file):
    shown = open_page(report_file)
    shown.locator("#metrics [aria-selected=true]").focus()
    shown.keyboard.press("ArrowRight")
    assert shown.locator("#metrics [aria-selected=true]").inner_text() == "ESN analog"
    assert shown.locator("#share-head").inner_text() == "share of ESN analog"
    assert "esn_analog=" in shown.locator("#pick-budget").inner_text()
    shown.locator("#accuracy").focus()
    title = shown.locator("#point-title").inner_text()
    shown.keyboard.press("ArrowLeft")
    assert shown.locator("#point-title").inner_text() != title
    shown.locator("#points .pick", has_text="max_abs, 2 bits").focus()
    shown.keyboard.press("Enter")
    assert shown.locator("#point-title").inner_text().startswith("max_abs, 2 bits: 21.30")


def test_arrow_keys_pass_over_points_that_are_not_shown(open_page, report_file):
    shown = open_page(report_file)
    start_over(shown)
    shown.locator("#accuracy").focus()

    def walk(steps=20):
        titles = set()
        for _ in range(steps):
            shown.keyboard.press("ArrowRight")
            titles.add(shown.locator("#point-title").inner_text().split(":")[0])
        return titles

    everything = walk()
    assert {"A", "max_abs, 2 bits"} & everything == set()  # 61.0 % and 21.3 % are below the first view
    assert {"B", "L", "max_abs, 3 bits"} <= everything
    shown.evaluate("Plotly.restyle('accuracy', {visible: 'legendonly'}, [2])")
    assert {name for name in walk() if "max_abs" in name} == set()
    shown.evaluate("Plotly.restyle('accuracy', {visible: true}, [2])")


def test_columns_are_chosen(open_page, report_file):
    shown = open_page(report_file)
    assert "policy, setting" not in shown.locator("#points-head").inner_text()
    shown.locator("#columns summary").click()
    box = shown.locator("#columns label", has_text="policy, setting")
    box.click()
    assert "policy, setting" in shown.locator("#points-head").inner_text()
    assert "optimal, price 2.15e-09" in shown.locator("#points-body").inner_text()
    box.click()
    shown.locator("#columns label", has_text="95 % interval").click()
    assert "95 % interval" not in shown.locator("#points-head").inner_text()
    shown.locator("#columns label", has_text="95 % interval").click()
    shown.locator("#columns summary").click()


def test_points_and_figure_are_saved(open_page, tmp_path, run_of):
    run = run_of(HOSTILE)
    run.points[0] = dataclasses.replace(run.points[0], policy='=1+1,"x"')
    file = tmp_path / "report.html"
    file.write_text(page(report_data(run.about, run.points, run.read_cost)), encoding="utf-8")
    shown = open_page(file)
    saved = {}
    for kind in ("csv", "json", "svg"):
        with shown.expect_download() as waiting:
            shown.locator(f"#save-{kind}").click()
        saved[kind] = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(saved[kind])
    rows = list(csv.DictReader(saved["csv"].read_text().splitlines()))
    assert len(rows) == len(run.points)
    assert rows[0]["policy"] == '\'=1+1,"x"'  # a spreadsheet calculates nothing
    assert float(rows[3]["esn_digital"]) == run.points[3].costs["esn_digital"]
    data = json.loads(saved["json"].read_text())
    assert (data["schema"], data["network"], data["points"][0]["policy"]) == (1, HOSTILE, '=1+1,"x"')
    figure = saved["svg"].read_text()
    assert figure.startswith("<svg")
    assert "<script" not in figure


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_without_scripts_the_figure_is_seen(browser, report_file, width, scheme):
    shown = browser.new_context(
        java_script_enabled=False, viewport={"width": width, "height": 900}, color_scheme=scheme
    ).new_page()
    shown.goto(report_file.as_uri())
    assert shown.locator("svg.still circle").count() == 16
    assert shown.locator("svg.still").bounding_box()["width"] > 300
    assert not shown.locator("#metrics").is_visible()
    shown.context.close()


def test_table_lists_failures_and_sorts(open_page, report_file):
    shown = open_page(report_file)
    assert "failed: accuracy is NaN" in shown.locator("#points-body").inner_text()
    shown.locator("#points-head button", has_text="accuracy").click()
    assert shown.locator("#points th[aria-sort]").inner_text().startswith("accuracy")
    assert "92.00 %" in shown.locator("#points-body tr").first.inner_text()


def test_all_points_come_into_view_on_request(open_page, report_file):
    shown = open_page(report_file)
    shown.locator("#view").click()
    low = shown.evaluate("document.getElementById('accuracy').layout.yaxis.range[0]")
    assert low < 21.3
    shown.locator("#view").click()
    assert shown.evaluate("document.getElementById('accuracy').layout.yaxis.range[0]") > 60


def test_dark_differs_and_the_toggle_switches(open_page, report_file):
    def colours(shown):
        return shown.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
            " document.querySelector('#accuracy .xtick text').style.fill]"
        )

    light, dark = (open_page(report_file, scheme=scheme) for scheme in ("light", "dark"))
    assert all(a != b for a, b in zip(colours(light), colours(dark), strict=True))
    light.locator("#theme").click()
    assert colours(light) == colours(dark)
    light.locator("#theme").click()
    assert colours(light) != colours(dark)


def test_hostile_names_stay_text(open_page, tmp_path, run_of):
    run = run_of(HOSTILE)

    def read_cost(point):
        report = run.read_cost(point)
        report["layers"][0]["name"] = HOSTILE
        report["notes"] = [HOSTILE]
        return report

    run.points[0] = type(run.points[0])(**{**vars(run.points[0]), "policy": HOSTILE})
    run.points[-1] = type(run.points[-1])(**{**vars(run.points[-1]), "error": HOSTILE})
    file = tmp_path / "report.html"
    file.write_text(page(report_data(run.about, run.points, read_cost)), encoding="utf-8")
    shown = open_page(file)
    shown.evaluate("Plotly.Fx.hover('accuracy', [{curveNumber: 2, pointNumber: 0}])")
    shown.wait_for_selector("#accuracy .hovertext")
    assert shown.evaluate("window.injected") is None
    assert shown.locator("img, a[href^=javascript], #accuracy svg a").count() == 0
    assert shown.locator("#network").inner_text() == HOSTILE
    assert shown.locator("#layers th").first.inner_text() == HOSTILE
    assert "onerror" in shown.locator("#accuracy .hovertext").text_content()


def test_markup_that_got_in_would_not_run(pages, report_file):
    shown = pages(report_file)
    trap = "<p onclick='window.injected = 1' id=trap>x</p>"
    with shown.expect_console_message(lambda message: "Content Security Policy" in message.text):
        shown.evaluate(f"document.body.insertAdjacentHTML('afterbegin', {json.dumps(trap)})")
        shown.locator("#trap").click()
    assert shown.evaluate("window.injected") is None
    shown.complaints.clear()
