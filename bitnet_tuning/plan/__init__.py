"""Decisions: from facts to threads, environment, memory, placement and command line."""
