"""Bounds of the memory that reading takes, whatever the input holds."""

READ_BYTES = 1 << 20
"""A line is read in parts of at most this size."""
MAX_LINE_CHARACTERS = 4096
"""A longer line is split at its sentences, and a longer sentence anywhere."""
MAX_DOCUMENT_CHARACTERS = 1 << 20
"""A longer document is split between two lines."""
SPAN_BYTES = 1 << 23
"""Default size of the parts that `plan_spans` divides inputs into."""
MAX_ROW_BYTES = 1 << 26
"""A longer row of JSON or parallel text is refused: it must be in memory whole, and no document is as long."""
MAX_COMPRESSION = 200
"""Compressed files that unfold to more than this are no text: prose shrinks to a tenth, logs to a hundredth at most."""
MIN_BOMB_BYTES = 1 << 26
"""What a compressed file may unfold to whatever its size: as much is read in a minute."""
MAX_INVALID = 0.005
"""Share of damage that text may have: accidents are single bytes in millions, a wrong encoding spoils every tenth."""
MAX_UNKNOWN = 0.25
"""Share of [UNK]: BERT's vocabularies leave 0 to 4 % of text in their languages, 29 to 96 % of others or of noise."""
LOOK_BYTES = 1 << 16
"""How much is looked at where a file begins, and at some places further on, before it is read."""
