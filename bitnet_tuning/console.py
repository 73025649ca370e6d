"""Command lines. Each program's ``main`` runs inside ``guarded``: the one error boundary."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from bitnet_tuning.errors import TuningError

NAME = "bitnet-tuning"

MEBIBYTE, GIBIBYTE = 1 << 20, 1 << 30
"""Units in which messages show sizes."""


def counted(number: float, noun: str) -> str:
    """Return ``1 thread``, ``2 threads``, ``1.5 CPUs``."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


Body = Callable[[list[str]], int]


def say(text: str) -> None:
    """A line of ours: always on stderr, since stdout is the engine's."""
    if sys.stderr is None:  # closed; print would take stdout instead
        return
    try:
        print(f"{NAME}: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass


def guarded(body: Body, arguments: Sequence[str] | None = None) -> int:
    """Runs ``body`` and answers the exit code: no traceback reaches a user, unless
    BITNET_TUNING_DEBUG is set."""
    try:
        if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # any file name can be shown
        return body(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except TuningError as error:
        _show_trace()
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        _show_trace()
        say(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        return 1
    except Exception as error:
        _show_trace()
        say(f"error: {type(error).__name__}: {error}")
        say("this is a fault of bitnet-tuning; BITNET_TUNING_DEBUG=1 shows where")
        return 1
    finally:
        _flush()


def _flush() -> None:
    """What a stream does not take is dropped here; the interpreter, which tries once more
    at its end, would complain and change the exit code."""
    for handle, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), handle)


def _show_trace() -> None:
    if os.environ.get("BITNET_TUNING_DEBUG"):
        import traceback  # noqa: PLC0415

        traceback.print_exc()
