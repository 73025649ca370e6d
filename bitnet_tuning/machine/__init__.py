"""Read the machine's hardware, limits and present state; decide nothing."""
