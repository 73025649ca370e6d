#!/usr/bin/env python3
"""Print whether each optimisation takes effect in a running engine: see README.md.

This is a program. It holds no tests for pytest.
"""

import os
import sys

# `python3 -I` and PYTHONSAFEPATH leave out the folder of the script, where the package may be.
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from bitnet_tuning.__main__ import test_optimizations as main

if __name__ == "__main__":
    sys.exit(main())
