"""Engines: where they are, what they can do, and which of several builds to use."""
