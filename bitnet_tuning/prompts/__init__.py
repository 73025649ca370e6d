"""Many prompts with the model loaded once: asked through the engine's own server."""
