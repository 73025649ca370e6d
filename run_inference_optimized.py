#!/usr/bin/env python3
"""Run a prompt with bitnet.cpp, with performance mode, sampling flags and figures."""

import gc
import sys

gc.disable()  # there is nothing to collect: this program starts another one and waits

from bitnet_tuning.cli.run_optimized import main

if __name__ == "__main__":
    sys.exit(main())
