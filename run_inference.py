#!/usr/bin/env python3
"""Run a prompt with bitnet.cpp; upstream's flags, the threads found by itself."""

import sys

from bitnet_tuning.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
