"""Run bitnet.cpp with the settings that suit this machine."""

from __future__ import annotations

__version__ = "0.2.0"
