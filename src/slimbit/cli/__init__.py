"""ASK: the command line, one file per command. Nothing here imports torch before it is needed."""

import sys

import typer
from rich.console import Console

from slimbit.cli.cost import cost
from slimbit.cli.demo import demo
from slimbit.cli.frontier import frontier
from slimbit.cli.pick import pick
from slimbit.cli.points import points
from slimbit.cli.report import report
from slimbit.records.errors import SlimbitError

app = typer.Typer(
    name="slimbit",
    help="What a CNN costs, its accuracy against cost, and the model that fits a budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (cost, frontier, points, pick, report, demo):
    app.command()(_command)


@app.callback(invoke_without_command=True)
def _root(*, version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from slimbit import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: one clear sentence and exit code 2 for bad input, 130 when interrupted."""
    try:
        app()
    except SlimbitError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {_plain(message)}")


def _plain(message: str) -> str:
    from rich.markup import escape

    return escape(" ".join(message.split()))
