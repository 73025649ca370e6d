"""Checks on the real engine: the self-test, and what a running engine really got."""
