"""Many prompts through the engine's own server."""
