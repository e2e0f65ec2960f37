"""Two runs side by side: costs at equal accuracy, what differs, hostile names."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from slimbit.cli import app
from slimbit.frontier.frontier import open_run
from slimbit.records.errors import InputError
from slimbit.report.compare import compare_page, comparison, equal_accuracy, run_names
from slimbit.report.frames import report_data


@pytest.fixture
def two(run_of):
    """The invented run, and one whose points cost half as much."""
    first = run_of()
    about = dataclasses.replace(first.about, run="runs/other", float_accuracy=92.0)
    halved = [
        dataclasses.replace(p, costs={name: cost and cost / 2 for name, cost in p.costs.items()}) for p in first.points
    ]
    return (
        report_data(first.about, first.points, first.read_cost),
        report_data(about, halved, first.read_cost),
    )


def test_costs_at_equal_accuracy(two):
    rows = equal_accuracy(*two, "esn_digital")
    assert [row[0] for row in rows] == ["91.23 %", "90.73 %", "89.73 %", "88.73 %", "86.73 %"]  # 91.73 is the lower one
    assert {row[3][:10] for row in rows} == {"other, 2.0"}
    back = equal_accuracy(*two[::-1], "esn_digital")
    assert [[second, first] for _, first, second, _ in rows] == [[first, second] for _, first, second, _ in back]


def test_a_front_that_does_not_reach_an_accuracy_has_no_cost_there(two):
    first, second = two
    low = dataclasses.replace(second, points=tuple(p for p in second.points if (p.accuracy or 0) < 90))
    row = equal_accuracy(first, low, "esn_digital")[0]
    assert row[2:] == ["-", "-"]


def test_what_differs_is_marked_and_images_are_compared(two):
    first, second = two
    facts = {name: (a, b, differs) for name, a, b, differs in comparison(first, second)["facts"]}
    assert facts["run"] == ("runs/resnet20", "runs/other", True)
    assert facts["network"] == ("resnet20", "resnet20", False)
    assert comparison(first, second)["notes"] == ["Whether both runs were scored on the same images is not known."]

    def scored(data, digest):
        return dataclasses.replace(
            data, about=dataclasses.replace(data.about, provenance={"evaluation digest": digest}, activation_bits=8)
        )

    assert comparison(scored(first, "a"), scored(second, "a"))["notes"] == []
    (note,) = comparison(scored(first, "a"), scored(second, "b"))["notes"]
    assert note.startswith("The runs were scored on different images")


def test_names_of_runs_differ(two):
    first, second = two
    assert run_names(first, second) == ["resnet20", "other"]
    assert run_names(first, first) == ["resnet20 (1)", "resnet20 (2)"]
    elsewhere = dataclasses.replace(second, about=dataclasses.replace(second.about, run="old/resnet20"))
    assert run_names(first, elsewhere) == ["runs/resnet20", "old/resnet20"]


def test_runs_without_a_common_cost_are_refused(two):
    first, second = two
    with pytest.raises(
        InputError, match="runs to compare must have a cost in common, got runs/resnet20 and runs/other"
    ):
        comparison(first, dataclasses.replace(second, metrics=()))


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_in_a_browser(browser, tmp_path, two, width, scheme):
    hostile = "</noscript></script><img src=x onerror='window.injected=1'>"
    first, second = two
    about = dataclasses.replace(second.about, run=hostile, network=hostile, provenance={hostile: hostile})
    file = tmp_path / "versus.html"
    file.write_text(compare_page(first, dataclasses.replace(second, about=about)), encoding="utf-8")
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.goto(file.as_uri())
    shown.wait_for_selector("#accuracy .point", state="attached")
    shown.locator("#metrics [aria-selected=true]").focus()
    shown.keyboard.press("ArrowRight")
    assert shown.locator("#equal-head th").nth(1).inner_text() == "resnet20 (step²)"
    assert hostile in shown.locator("#facts").inner_text()
    assert shown.evaluate("window.injected") is None
    assert shown.locator("img").count() == 0
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    shown.close()


def test_command_and_method_write_the_same(stored_run, tmp_path):
    result = CliRunner().invoke(app, ["report", str(stored_run), "--versus", str(stored_run)])
    assert result.exit_code == 0
    file = stored_run / "versus.html"
    run = open_run(stored_run)
    assert run.report(tmp_path / "versus.html", versus=run).read_bytes() == file.read_bytes()
    data = json.loads(file.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0])
    assert {row[3] for rows in data["rows"].values() for row in rows} <= {"equal", "-"}
