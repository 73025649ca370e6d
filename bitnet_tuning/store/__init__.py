"""The cache folder: atomic writes, locks, records as JSON."""
