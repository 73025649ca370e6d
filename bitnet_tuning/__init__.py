"""Run bitnet.cpp with the settings that suit this machine."""

__version__ = "0.1.0"
