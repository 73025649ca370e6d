#!/usr/bin/env python3
"""Do the optimisations act? Looks at an engine while it runs: see README.md. No pytest
finds a test in here."""

import sys

from bitnet_tuning.cli.test_optimizations import main

if __name__ == "__main__":
    sys.exit(main())
