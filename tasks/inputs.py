"""What the inputs of a served model are called outside, as transformers does and clients of servers know, and here."""

INPUTS = {"input_ids": "input_ids", "attention_mask": "input_mask", "token_type_ids": "segment_ids"}
IDS, MASK, TYPES = INPUTS.values()
