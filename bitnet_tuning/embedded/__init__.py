"""The embedded engine: look-alikes of llama.cpp's programs over xllamacpp."""
