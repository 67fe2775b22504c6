"""Checkpoint names and formats of others, read in both directions."""
