"""The embedded engine: programs like llama.cpp's, made of the PyPI package xllamacpp."""
