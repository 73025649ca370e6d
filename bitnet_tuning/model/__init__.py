"""Model files: finding one, and reading what its header says."""
