"""The commands that a user types: one module for each, and the flags that they share."""
