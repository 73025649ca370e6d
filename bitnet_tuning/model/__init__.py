"""Model files: finding them and reading their headers."""
