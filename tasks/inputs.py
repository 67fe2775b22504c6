"""What the inputs of a served model are called outside, as transformers does and clients of servers know, and here."""

INPUTS = {
    "input_ids": "input_ids",
    "attention_mask": "input_mask",
    "token_type_ids": "segment_ids",
    "masked_lm_positions": "masked_lm_positions",
}
IDS, MASK, TYPES, POSITIONS = INPUTS.values()
