"""The special ids of a model that writes text, as transformers' generation reads them: start, end, padding, no text.

They are those with which a model is trained and searched here (tasks/text_generator.py): a target begins with what
every text begins with, and special tokens are never written.
"""

from collections.abc import Mapping
from typing import Any

from modeling.config import Config

_SPECIALS = (("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>"))
_OF_BERT, _OF_ROBERTA = (101, 102, 0), (0, 2, 1)


def token_ids(config: Config, tokenizer: bytes | None) -> dict[str, int]:
    """Return the ids that a text begins with, ends with and is padded with; empty where they are not known.

    Args:
        config: of the model.
        tokenizer: the content of tokenizer.json. Without it the ids are those of BERT's vocabularies or, where
            positions begin behind a padding id, of RoBERTa's.
    """
    if tokenizer is None:
        ids: tuple[int | None, ...] = _OF_ROBERTA if config.position_offset else _OF_BERT
    else:
        from tokenizers import Tokenizer

        id_of = Tokenizer.from_str(tokenizer.decode()).token_to_id
        ids = tuple(next((id_of(name) for name in names if id_of(name) is not None), None) for names in _SPECIALS)
    start, end, padding = (i if i is not None and i < config.vocab_size else None for i in ids)
    if start is None or end is None or padding is None:
        return {}
    return {
        "decoder_start_token_id": start,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": padding,
    }


def never_written(ids: Mapping[str, int], tokenizer: bytes | None) -> dict[str, Any]:
    """Return the setting of the special tokens that are no text; empty without the tokenizer, which knows them."""
    if tokenizer is None:
        return {}
    from tokenizers import Tokenizer

    added = Tokenizer.from_str(tokenizer.decode()).get_added_tokens_decoder()
    return {"suppress_tokens": sorted({i for i, token in added.items() if token.special} - {ids["eos_token_id"]})}
