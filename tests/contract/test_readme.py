"""What README.md shows is what a reader gets."""

import re
import tomllib
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


def test_links_lead_somewhere_from_everywhere():
    """Package indexes show the page, too: only whole addresses lead somewhere there."""
    own = re.compile(r"https://github\.com/slimbit/slimbit/(?:blob|tree)/main/(.*)")
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert len(links) > 30
    for link in links:
        assert link.startswith("https://"), link
        inside = own.fullmatch(link)
        assert inside is None or (README.parent / inside[1]).exists(), link


def test_every_dependency_has_its_licence_in_the_table():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    names = {re.match(r"[\w.-]+", one)[0] for one in declared} - {"slimbit"}
    rows = re.findall(
        r"^\| ([^|]+) \|[^|]+\| [^|]+ \|$", (README.parent / "docs/reference/licences.md").read_text(), re.MULTILINE
    )
    assert {name for row in rows[1:] for name in row.split(", ")} == names
