"""The command line: one file a command, each parses, calls Lab and prints. Only this room prints or exits."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import typer

from bblab.cli.commands import Commands
from bblab.errors import BblabError, RunError

app = typer.Typer(
    name="bblab",
    cls=Commands,
    help="Declare a tracker backbone as a spec; know its cost, geometry and latency before training it.",
    epilog="Start with: bblab specs · bblab profile mobileone_k5_se · bblab new mine --like mobileone_s0",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


_BY_HAND = 130  # what Typer makes of Ctrl-C


@contextmanager
def _ended_like_by_hand() -> Iterator[None]:
    """A closed terminal (SIGHUP) and `kill` (SIGTERM) end a run as Ctrl-C does: what was measured is stored."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    taken = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup has set it to be ignored
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, interrupt)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 success, 1 a failed run, 2 wrong usage or a wrong spec."""
    try:
        with _ended_like_by_hand():
            app(args=list(sys.argv[1:] if argv is None else argv), prog_name="bblab")
    except SystemExit as stop:
        if stop.code == _BY_HAND:
            from bblab.cli.common import complain

            complain(RunError("stopped by hand", hint="what was stored before is kept: bblab runs"))
            return 1
        return stop.code if isinstance(stop.code, int) else 1
    except BblabError as error:
        from bblab.cli.common import complain

        complain(error)
        return error.exit_code
    except BrokenPipeError:  # `bblab runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        from bblab.cli.common import complain

        with suppress(OSError):  # what is still buffered cannot be written either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        hint = "free some space; what was measured before is in the lab: bblab runs"
        complain(RunError(f"the output cannot be written: {error.strerror}", hint=hint))
        return 1
    return 0
