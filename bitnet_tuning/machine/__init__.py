"""Facts about the machine and its present state, read below a root folder."""
