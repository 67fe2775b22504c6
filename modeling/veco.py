"""VECO (Luo et al. 2021): XLM-R's graph, whose every block has a cross-attention that is plugged in or out.

Plugged in it learns from two texts that read each other; plugged out it is XLM-R. When it generates, its encoder is
plugged out, and copies of its last blocks, made causal, are the decoder, which has its own positions and LayerNorm.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from absl.app import UsageError

from modeling import bart, bert
from modeling.beginnings import Beginning
from modeling.dialects import transformers

if TYPE_CHECKING:
    from modeling.body import Body
    from modeling.computation import Computation
    from modeling.config import Config
    from modeling.variables import Initialization

_BRICK = re.compile(r"backbone/(encoder|decoder)/(attention|cross_attention|feed_forward)_(\d+)/(.*)")
_EMBEDDINGS, _OF_TARGET = "backbone/embeddings/", "backbone/target_embeddings/"


def body(config: Config, initialization: Initialization, computation: Computation) -> Body:
    """Return XLM-R's encoder, one of two texts, or an encoder and a decoder, as the config says."""
    if config.cross_attention:
        from modeling.two_sides import TwoSides

        return TwoSides(config, initialization, computation)
    if not config.num_decoder_layers:
        return bert.body(config, initialization, computation)
    from modeling.embeddings import Embeddings
    from modeling.encoder_decoder import EncoderDecoder

    def of_target(embeddings: Embeddings) -> Embeddings:
        dtype, name = computation.dtype, _OF_TARGET.split("/")[1]
        return Embeddings(config, initialization, words=embeddings, dtype=dtype, name=name)

    return EncoderDecoder(config, config.decoder, initialization, computation, target_embeddings=of_target, pools=True)


def check(config: Config) -> None:
    """Raise `UsageError` for what is none of VECO's graphs."""
    bert.check(config)
    if config.type_vocab_size > 1:
        raise UsageError(f"type_vocab_size is {config.type_vocab_size}; VECO has one token type, or none: 1 or 0")
    if config.cross_attention and config.num_decoder_layers:
        raise UsageError(
            f"cross_attention is True with num_decoder_layers {config.num_decoder_layers}: an encoder that a decoder "
            "reads has none; set cross_attention to false"
        )


def beginning(variables: Collection[str], tensors: Collection[str]) -> Beginning:
    """Return how a model begins from a checkpoint of another of VECO's shapes.

    A decoder of k blocks begins as the last k of the checkpoint's decoder or, where it has none, of its encoder. Three
    blocks of an encoder of twelve:
        variables decoder/attention_0 .. attention_2, tensors encoder/attention_0 .. attention_11
        origins   decoder/attention_0 -> encoder/attention_9, .. decoder/attention_2 -> encoder/attention_11
    Cross-attention may be new where the checkpoint has none (it is XLM-R's), and is left out where it is plugged out.
    """
    stack = "decoder" if any(name.startswith("backbone/decoder/") for name in tensors) else "encoder"
    blocks = {kind: _blocks(variables, "decoder", kind) for kind in _KINDS}
    there = {kind: _blocks(tensors, stack, kind) for kind in _KINDS}
    found = {}
    for name in variables:
        brick = _BRICK.fullmatch(name)
        origin = name
        if name.startswith(_OF_TARGET) and name not in tensors:
            origin = _EMBEDDINGS + name.removeprefix(_OF_TARGET)
        elif brick is not None and brick[1] == "decoder":
            place = blocks[brick[2]].index(int(brick[3])) - len(blocks[brick[2]])
            if len(there[brick[2]]) >= -place:
                origin = f"backbone/{stack}/{brick[2]}_{there[brick[2]][place]}/{brick[4]}"
        if origin != name and origin in tensors:
            found[name] = origin
    crossed = "cross_attention_"
    new = {name for name in variables if crossed in name} if not any(crossed in name for name in tensors) else set()
    plugged_out = {name for name in tensors if name.startswith(f"backbone/encoder/{crossed}")}
    passed_over = {name for name in tensors if name.startswith("backbone/decoder/")} if any(blocks.values()) else set()
    return Beginning(origins=found, new=new, unused=plugged_out | passed_over)


_KINDS = ("attention", "cross_attention", "feed_forward")


def _blocks(names: Collection[str], stack: str, kind: str) -> list[int]:
    """Return the numbers of the blocks of a stack, in order."""
    bricks = (brick for name in names if (brick := _BRICK.fullmatch(name)) is not None)
    return sorted({int(brick[3]) for brick in bricks if (brick[1], brick[2]) == (stack, kind)})


DIALECTS = (transformers("veco", "pad_token_id", fields=bert.roberta_fields), bart.DIALECT)
"""SOFA's, plugged out; and transformers' BART, which a model that generates is written as."""
