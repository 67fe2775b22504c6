"""Checkpoint names and formats of others, read in both directions."""

from conversion.loading import LoadReport, check_fits, load_into
from conversion.readers import Checkpoint, read_checkpoint
from conversion.writers import Written, write_ours, write_tf1, write_transformers

__all__ = [
    "Checkpoint",
    "LoadReport",
    "Written",
    "check_fits",
    "load_into",
    "read_checkpoint",
    "write_ours",
    "write_tf1",
    "write_transformers",
]
