#!/usr/bin/env python3
"""Find the settings with which an engine runs fastest on this machine; see README.md."""

import os
import sys

# `python3 -I` and PYTHONSAFEPATH leave out the folder of the script, where the package may be.
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from bitnet_tuning.__main__ import benchmark as main

if __name__ == "__main__":
    sys.exit(main())
