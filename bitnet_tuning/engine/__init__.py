"""Compiled engines: where they are, what they can do, which one to use."""
