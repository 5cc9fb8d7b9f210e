"""The command line: one library call per command, and torch imported only by those that need it."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from torchfault.cli import interruption

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130  # as shells do: 128 and the number of the signal
INTERNAL = 1
UNREAD = 141  # as shells do: 128 and the number of SIGPIPE
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_FORMER = {  # flags of before, and what says the same now
    "--faults": "--sampler uniform:N (faults struck together) or --trials N (upsets)",
    "--rate": "--sampler bit-error-rate:RATE",
    "--margin": "--sampler layer-wise:MARGIN",
    "--whole": "--half-width H",
    "--site": "--half-width site=H",
    "--bit": "--half-width bit=H",
    "--score": "--sampler importance:SCORE",
    "--floor": "--sampler importance:floor=SHARE",
    "--images": "--inputs-per-fault N, or --sampler importance:inputs=N",
    "--pool": "--resolver pooled:N",
    "--monotone": "--resolver monotone",
    "--audit": "--resolver pooled:audit=SHARE",
    "--interval": "--method",
    "--table": "--by",
    "--diagnostics": "--by diagnostics",
    "--target": "--kinds weight, --kinds input",
    "--layers": "--include GLOB",
    "--complete": "--share all",
    "--keep": "--store",
    "--estimator": "--proposal",
    "--output": "--plot FILE, or torchfault export",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line *argv* (that of the process unless given) and return the exit status.

    0: done; 2: bad input, told in one line; 130: interrupted by Ctrl-C; 141: nobody reads the output any more; 1: an
    error of torchfault itself.
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    from torchfault.cli.screen import traced, warned
    from torchfault.errors import TorchfaultError, lacks_memory

    _forgive_closed_streams()
    _forgive_narrow_encodings()
    with interruption.once(last=argv is None), warnings.catch_warnings():
        warnings.showwarning = warned
        try:
            status = _dispatch(arguments)
            sys.stdout.flush()  # at exit nothing could be told any more
            return status
        except TorchfaultError as error:
            return _complain(str(error), BAD_INPUT)
        except BrokenPipeError:
            return _unread()
        except SystemExit as told:  # a campaign that was interrupted has said what is kept
            # Rich and typer both end the process by a status of their own where a pipe breaks.
            return _unread() if isinstance(told.__context__, BrokenPipeError) else int(told.code or 0)
        except KeyboardInterrupt:
            return _stopped()
        except Exception as error:
            if interruption.came():
                return _stopped()
            if lacks_memory(error):
                return _complain(
                    "memory ran out; what a store held before is kept: give a smaller --memory, or fewer inputs by "
                    "--limit, and run it again",
                    BAD_INPUT,
                )
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                _drop(sys.stdout)
                said = f"the output cannot be written ({error.strerror}); make room, or write it elsewhere"
                return _complain(said, BAD_INPUT)
            traced()
            return _complain(
                "this is a bug in torchfault; please report it with the lines above and the command", INTERNAL
            )


def _dispatch(arguments: list[str]) -> int:
    import typer

    from torchfault.cli.app import app

    # What a Ctrl-C cuts short in there is told by us, not by a log with a traceback.
    logging.getLogger("sqlalchemy").addHandler(logging.NullHandler())
    # The same classes stand in click, or in typer itself, by its version.
    usage: type[Exception] = typer.BadParameter.__mro__[2]
    try:
        status = typer.main.get_command(app).main(arguments, prog_name="torchfault", standalone_mode=False)
    except usage as error:
        return _complain(_usage(error), BAD_INPUT)
    except typer.Abort:
        raise KeyboardInterrupt from None
    if status == INTERRUPTED:  # typer's own word for Ctrl-C
        raise KeyboardInterrupt
    return int(status or 0)


def _usage(error: Exception) -> str:
    """Return what is wrong with the arguments, and where help is."""
    text = str(error.format_message() if hasattr(error, "format_message") else error).strip().rstrip(".")
    if former := _FORMER.get(name := str(getattr(error, "option_name", ""))):
        return f"no such option: {name}; it is {former} now"
    context = getattr(error, "ctx", None)
    return f"{text[:1].lower()}{text[1:]}; see {context.command_path if context else 'torchfault'} --help"


def _stopped() -> int:
    return _complain("interrupted; what a store held before is kept", INTERRUPTED, label="stopped")


def _complain(message: str, status: int, *, label: str = "error") -> int:
    from torchfault.cli.screen import complain

    try:
        complain(label, message)
    except (OSError, SystemExit):  # nobody reads standard error, or it cannot be written: the status is left to tell
        _drop(sys.stderr)
    return status


def _unread() -> int:
    """End as other programs do in `torchfault show | head -n 1`: in silence, the flush of both streams at exit too."""
    _drop(sys.stdout)
    _drop(sys.stderr)
    return UNREAD


def _drop(stream: TextIO) -> None:
    """Let nothing that is still to be written to *stream* get anywhere."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _forgive_closed_streams() -> None:
    """Open what the process was started without (`>&-`), before another file gets its number and its text."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115


def _forgive_narrow_encodings() -> None:
    """Let a terminal without UTF-8 show a question mark instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
