"""Run bitnet.cpp with settings that suit the machine."""

from __future__ import annotations

__version__ = "0.2.0"
