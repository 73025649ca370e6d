"""llama-cli's part of the embedded engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bitnet_tuning._embedded import options as cli_options
from bitnet_tuning._embedded.options import Options


def main(argv: Sequence[str]) -> int:
    """Run a llama-cli command line. Returns the exit code.

    Raises TuningError for what cannot be done. Help needs no xllamacpp and, like
    a wrong flag, does not wait for it.
    """
    options = cli_options.parse(argv)
    if options.help:
        sys.stdout.write(cli_options.help_text())
        return 0
    if options.version:
        from bitnet_tuning._embedded.binding import version_line  # noqa: PLC0415 (help must be quick)

        print(version_line())
        return 0
    return _run(options)


def _run(options: Options) -> int:
    # Loading takes threads, sockets and temporary files: not for help's sake.
    from bitnet_tuning._embedded import chat, oneshot, output  # noqa: PLC0415
    from bitnet_tuning._embedded.binding import Setup  # noqa: PLC0415
    from bitnet_tuning._embedded.engine import Engine  # noqa: PLC0415

    chosen = options._asdict()
    setup = Setup(**{name: chosen[name] for name in Setup._fields if name in chosen})
    if options.chat:
        setup = setup._replace(chat_template=chat.template_for(options.model))
    engine = Engine(setup)
    if options.log:
        output.note(f"\n{engine.system_info()}\n")
    return chat.run(options, engine) if options.chat else oneshot.run(options, engine)
