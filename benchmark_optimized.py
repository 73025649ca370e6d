#!/usr/bin/env python3
"""Find the settings with which an engine runs fastest on this machine; see README.md."""

import sys

from bitnet_tuning.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
