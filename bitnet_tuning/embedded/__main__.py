"""Run the embedded engine's llama-cli, llama-bench or llama-server.

    python3 -m bitnet_tuning.embedded [cli] -m MODEL -p PROMPT -n N -t T
    python3 -m bitnet_tuning.embedded bench -m MODEL -p 512 -n 128 -t 2 -o json
    python3 -m bitnet_tuning.embedded server -m MODEL -np 4 --port 8080

The launcher starts it like a compiled engine, and it behaves like one: the text goes to standard
output, everything else to standard error. The exit code is 1 for a usage error or an unusable
model, 3 if xllamacpp is missing, and 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module

if not __package__:
    # The launcher starts this file by its path. Python then puts this folder on sys.path, where
    # its modules would hide others of the same names, and not the folder of the package.
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != _HERE]
    sys.path.insert(0, os.path.dirname(os.path.dirname(_HERE)))

INTERRUPTED, BROKEN_PIPE = 130, 141
"""Exit codes after SIGINT (128 + 2) and SIGPIPE (128 + 13)."""


def main(argv: list[str]) -> int:
    """Run one command line and return its exit code; every error is printed, none is raised."""
    try:
        _dispatch(argv)
        if sys.stdout is not None:
            sys.stdout.flush()  # what does not fit on the disk is an error
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:
        from bitnet_tuning.console import code_of, tell  # noqa: PLC0415 (needs the path above)

        return code_of(error, tell)


def _dispatch(argv: list[str]) -> None:
    from bitnet_tuning.embedded.engine import version_line  # noqa: PLC0415 (needs the path above)
    from bitnet_tuning.embedded.flags import render  # noqa: PLC0415

    named = argv[:1] in (["cli"], ["bench"], ["server"])
    module = import_module(f"bitnet_tuning.embedded.{argv[0] if named else 'cli'}")
    program = module.PROGRAM
    options = program.parse(argv[named:])
    # Help and wrong flags come first: they need no xllamacpp, which is slow to import.
    if options.help:
        print(render(program.title, program.flags), end="")
    elif options.version:
        print(version_line())
    else:
        program.run(options)


def leave(code: int) -> None:
    """End the process now, with the exit code ``code``."""
    # sys.exit would wait for the engine's threads, which check for a stop only between batches:
    # seconds after Ctrl-C in a long prompt. After Ctrl-C, standard output is not flushed either,
    # because its reader may have stopped reading.
    for stream in (sys.stdout, sys.stderr)[code == INTERRUPTED :]:
        with suppress(OSError, ValueError):  # ``main`` has named it
            if stream is not None:  # it was closed at the start
                stream.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
