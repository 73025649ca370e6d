#!/usr/bin/env python3
"""Run prompts with bitnet.cpp, with flags for sampling, performance mode and statistics."""

import gc
import sys

gc.disable()  # there is no garbage worth collecting: this program starts the engine and waits

from bitnet_tuning.cli.run_optimized import main

if __name__ == "__main__":
    sys.exit(main())
