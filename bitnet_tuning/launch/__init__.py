"""Programs: starting, feeding, stopping them and explaining how they ended."""
