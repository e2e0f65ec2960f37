"""What README.md shows is what a reader gets."""

import re
from pathlib import Path

from typer.testing import CliRunner

from slimbit.cli import app

README = Path(__file__).parents[2] / "README.md"


def test_printed_tables_are_what_the_commands_print():
    shown = re.findall(r"```console\n\$ slimbit (.*?)\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert shown
    for command, expected in shown:
        result = CliRunner().invoke(app, command.split(), env={"COLUMNS": "80"})
        printed = [line.rstrip() for line in result.stdout.splitlines()]
        assert printed == expected.splitlines(), command


def test_links_lead_somewhere():
    text = README.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (README.parent / link).exists(), link
