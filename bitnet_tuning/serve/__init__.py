"""Answer many prompts with the model loaded once, through the engine's own server."""
