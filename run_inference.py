#!/usr/bin/env python3
"""Run a prompt with bitnet.cpp, with the threads, environment and flags that suit this machine."""

import gc
import sys

gc.disable()  # there is no garbage worth collecting: this program starts the engine and waits

from bitnet_tuning.cli.run import main

if __name__ == "__main__":
    sys.exit(main())
