"""Bounds of the memory that reading takes, whatever the input holds."""

READ_BYTES = 1 << 20
"""A line is read in parts of at most this size."""
MAX_LINE_CHARACTERS = 4096
"""A longer line is split at its sentences, and a longer sentence anywhere."""
MAX_DOCUMENT_CHARACTERS = 1 << 20
"""A longer document is split between two lines."""
SPAN_BYTES = 1 << 23
"""Default size of the parts that `plan_spans` divides inputs into."""
