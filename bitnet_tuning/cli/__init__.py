"""Command lines: one file for each command that a user types."""
