"""Decide on threads, environment, memory, placement and command line from given facts."""
