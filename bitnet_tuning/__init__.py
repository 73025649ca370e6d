"""Run bitnet.cpp with settings that suit the machine."""

import sys

__version__ = "0.2.0"

# Every program imports this file first, so it must be readable for any older Python.
if sys.version_info < (3, 10):  # noqa: UP036
    found = "{} is {}.{}".format(sys.executable, *sys.version_info[:2])
    sys.stderr.write("bitnet-tuning: error: Python 3.10 or later is needed, but " + found + "\n")
    sys.exit(3)
