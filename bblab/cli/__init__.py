"""The command line: one file a command, each parses, calls Lab and prints. Only this room prints or exits."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from bblab.cli import bench, blocks, check, diff, duel, find, new, profile, recipes, runs, show, specs
from bblab.errors import BblabError

app = typer.Typer(
    name="bblab",
    help="Declare a tracker backbone as a spec; know its cost, geometry and latency before training it.",
    epilog="Start with: bblab specs · bblab profile mobileone_k5_se · bblab new mine --like mobileone_s0",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (profile, check, bench, duel, specs, blocks, new, recipes, runs, show, find, diff):
    module.register(app)


def _version(asked: bool) -> None:
    if asked:
        from bblab import __version__

        typer.echo(f"bblab {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 success, 1 a failed run, 2 wrong usage or a wrong spec."""
    try:
        app(args=list(sys.argv[1:] if argv is None else argv), prog_name="bblab")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BblabError as error:
        from bblab.cli.common import complain

        complain(error)
        return error.exit_code
    except BrokenPipeError:  # `bblab runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
