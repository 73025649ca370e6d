"""Start programs, pass signals and streams on, stop the programs, explain how they ended."""
