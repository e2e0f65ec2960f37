"""What commands say where there is nothing to show, or where an option is out of its range."""

from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import slimbit
from slimbit.cli import _plain, app
from slimbit.cli.frontier import parse_widths
from slimbit.records.errors import InputError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,1.5", "--widths must be shares of the filters, above 0 and up to 1, got '1,1.5'"),
        ("0", "--widths must be shares of the filters"),
        ("nan", "--widths must be shares of the filters"),
        ("1;0.5", "--widths must be numbers with commas between them"),
    ],
)
def test_widths_out_of_range_name_the_option(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_widths(text)


def test_sentences_of_the_library_name_the_option_on_the_command_line() -> None:
    said = _plain("model must be given, or allow_code=True where you trust it; or distil with distill=True")
    assert said == "model must be given, or --allow-code where you trust it; or distil with --distill"


def test_a_run_without_points_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = SimpleNamespace(
        points=(), costs=(), metric="esn_digital", pareto=lambda _: (), network="n", float_accuracy=1.0
    )
    empty.with_hardware = lambda *_: empty
    empty.with_costs = lambda names: (empty, names)
    monkeypatch.setattr("slimbit.frontier.frontier.open_run", lambda *_, **__: empty)
    done = CliRunner().invoke(app, ["points", "RUN"])
    assert done.exit_code == 0
    assert done.output == "RUN has no finished point yet: the command that made it continues it\n"


def test_what_a_newcomer_guesses_wrong_is_said_in_a_sentence() -> None:
    net, image = slimbit.network("digits_resnet"), torch.zeros(1, 1, 8, 8)
    for call, message in (
        (
            lambda: slimbit.prune(net, image, config=slimbit.TuneConfig()),
            r"must be a slimbit\.PruneConfig, got TuneC",
        ),
        (lambda: slimbit.quantize(net, image, bits=4, config=slimbit.PruneConfig()), r"must be a slimbit\.QuantConfig"),
        (lambda: slimbit.quantize(net, [image], bits=4), "got list: calibration batches come third"),
    ):
        with pytest.raises(InputError, match=message):
            call()
