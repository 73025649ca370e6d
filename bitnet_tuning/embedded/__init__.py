"""Look-alikes of llama.cpp's programs over an engine from PyPI."""
