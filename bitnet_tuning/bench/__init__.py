"""Measuring: what a setting is worth on this machine, and how sure that is."""
