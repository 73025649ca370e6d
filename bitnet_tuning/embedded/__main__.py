"""The default engine: look-alikes of llama.cpp's programs over xllamacpp.

    python3 -m bitnet_tuning.embedded -m MODEL -p PROMPT -n N -t T
    python3 -m bitnet_tuning.embedded bench -m MODEL -p 512 -n 128 -t 2,4
    python3 -m bitnet_tuning.embedded server -m MODEL -np 4 --port 8080

The launcher starts it as it starts a compiled engine, so it behaves like one:
text on standard output, everything else on standard error, exit code 1 for a
usage error or an unusable model, 130 after Ctrl-C. Beyond that 3 says that
xllamacpp is missing.
"""

from __future__ import annotations

import os
import sys

if not __package__:
    # Run by its path: this folder would shadow modules of the standard library.
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != _HERE]
    sys.path.insert(0, os.path.dirname(os.path.dirname(_HERE)))

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code; nothing is raised."""
    from bitnet_tuning.errors import TuningError  # noqa: PLC0415 (needs the path above)

    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except TuningError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error}", 1)


def _dispatch(argv: list[str]) -> int:
    if argv[:1] == ["bench"]:
        from bitnet_tuning._embedded import bench  # noqa: PLC0415

        return bench.main(argv[1:])
    if argv[:1] == ["server"]:
        from bitnet_tuning._embedded import server  # noqa: PLC0415

        return server.main(argv[1:])
    from bitnet_tuning._embedded import cli  # noqa: PLC0415

    return cli.main(argv)


def _fail(message: str, code: int) -> int:
    if os.environ.get("BITNET_TUNING_DEBUG"):
        import traceback  # noqa: PLC0415 (slow to import, rarely wanted)

        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code


def leave(code: int) -> None:
    """End the process now.

    An orderly exit would wait for the engine's threads, which look up only
    between batches: seconds after Ctrl-C in a long prompt. Nor does it wait, after
    Ctrl-C, for a reader that does not read.
    """
    for stream in (sys.stdout, sys.stderr)[code == INTERRUPTED :]:
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or BROKEN_PIPE
    os._exit(code)


if __name__ == "__main__":
    leave(main())
