"""The files that hold tensors by name, a kind a file: opened without reading numbers, written a tensor at a time."""
