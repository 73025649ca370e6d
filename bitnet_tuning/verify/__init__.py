"""Checks that run an engine: the self-test, and what a running engine received of its plan."""
