"""Keep records in the cache folder: JSON, atomic writes, locks."""
