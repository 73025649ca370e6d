#!/usr/bin/env python3
"""Run prompts with bitnet.cpp, with flags for sampling, performance mode and statistics."""

import gc
import os
import sys

gc.disable()  # there is no garbage worth collecting: this program starts the engine and waits

# `python3 -I` and PYTHONSAFEPATH leave out the folder of the script, where the package may be.
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from bitnet_tuning.__main__ import run_optimized as main

if __name__ == "__main__":
    sys.exit(main())
