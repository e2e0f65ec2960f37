"""ASK: the command line, one file per command. Nothing here imports torch before it is needed."""

import contextlib
import io
import os
import sys

import typer
from rich.console import Console

from slimbit.cli.cost import cost
from slimbit.cli.demo import demo
from slimbit.cli.export import export
from slimbit.cli.frontier import frontier
from slimbit.cli.help import examples, laid_out
from slimbit.cli.latency import latency
from slimbit.cli.lists import hardware, networks, recipes
from slimbit.cli.pick import pick
from slimbit.cli.points import points
from slimbit.cli.prune import prune
from slimbit.cli.report import report
from slimbit.cli.show import show
from slimbit.cli.signal import signal
from slimbit.cli.train import train
from slimbit.cli.verify import verify
from slimbit.records.errors import SlimbitError
from slimbit.records.terminal import shown
from slimbit.records.text import clipped

LONGEST_SENTENCE = 1500
SPOKEN = {"allow_code=True": "--allow-code", "distill=True": "--distill"}
"""What sentences of the library call an argument, and what the option is called here."""
app = typer.Typer(
    name="slimbit",
    help="What a CNN costs, its accuracy against cost, and the model that fits a budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    cost, show, train, signal, prune, frontier, points, pick, export, verify, latency, report, demo,
    networks, hardware, recipes,
)  # fmt: skip
for _command in COMMANDS:
    app.command(epilog=examples(_command.__name__))(laid_out(_command))


@app.callback(invoke_without_command=True)
def _root(*, version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from slimbit import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: one clear sentence and exit code 2 for bad input, 130 when interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a bar that the terminal's encoding lacks ends no command
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here a full disk is told, later it would be ignored
    except SlimbitError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(141)
    except OSError as error:
        _drop_output()
        _complain(f"{error.filename or 'the output'} must be usable, got {error.strerror or error}")
        sys.exit(2)


def _drop_output() -> None:
    """Send what could not be written nowhere, so that Python does not try again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {_plain(message)}")


def _plain(message: str) -> str:
    """One sentence that ends, whatever a file or an argument puts into it; a Python argument becomes the option."""
    for argument, option in SPOKEN.items():
        message = message.replace(argument, option)
    return shown(clipped(message, LONGEST_SENTENCE))
