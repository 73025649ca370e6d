#!/usr/bin/env python3
"""Print whether each optimisation takes effect in a running engine: see README.md.

This is a program. It holds no tests for pytest.
"""

import sys

from bitnet_tuning.cli.test_optimizations import main

if __name__ == "__main__":
    sys.exit(main())
