"""Start programs, pass signals and streams on, stop them, explain how they ended."""
