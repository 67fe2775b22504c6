"""Drives any task on any engine; knows nothing of language."""
