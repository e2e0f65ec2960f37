"""The help of every command: options in panels, examples that are options of the command."""

import inspect
import re
from typing import Annotated, get_args, get_origin

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

from slimbit.cli import COMMANDS, app
from slimbit.cli.help import EXAMPLES, PANELS

PANELLED = {name for names in PANELS.values() for name in names}


def options(command) -> set[str]:
    parameters = inspect.signature(command).parameters.items()
    return {
        name
        for name, parameter in parameters
        if get_origin(parameter.annotation) is Annotated
        and any(isinstance(info, OptionInfo) for info in get_args(parameter.annotation)[1:])
    }


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_has_a_panel(command) -> None:
    assert options(command) - PANELLED == set()


def test_panels_name_options_that_exist() -> None:
    assert PANELLED - set().union(*map(options, COMMANDS)) == set()
    assert sum(map(len, PANELS.values())) == len(PANELLED)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_use_options_of_their_command(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout
    described, _, written = shown.partition("Examples:")
    assert all(example in " ".join(written.split()) for example in EXAMPLES[name])
    for example in EXAMPLES[name]:
        assert all(option in described for option in re.findall(r" (--[a-z0-9-]+)", example)), example
