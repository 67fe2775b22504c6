"""Configuration of PALM (Bi et al. 2020) and PLUG for transformers: an encoder, a decoder, and how words are copied."""

from __future__ import annotations

import copy

from transformers import PretrainedConfig

# What is particular to a family: the pooled vector is the first state itself; the decoder has a word table of its own,
# sinusoids, pre-LN, the tanh GELU and a bias on its scores.
PARTICULAR: dict[str, frozenset[str]] = {
    "palm": frozenset({"pools_first_state"}),
    "palm_en": frozenset({"own_decoder"}),
}


class DivanPalmConfig(PretrainedConfig):
    """Choices that decide the graph and the shapes of its weights.

    `family` is "palm", the graph of the Chinese releases and of PLUG, or "palm_en", that of the English ones. The
    decoder has `num_decoder_layers`; its heads and its feed-forward are the encoder's unless they are given. `copy` is
    how the decoder takes words from the source: "none", "additive" (the paper's), "attention" (of its last block) or
    "legacy_attention" (the same with the released code's second softmax). `position_offset` rows of the position table
    come before the first token's, and `vocab_padding_multiple` rounds the rows of the word table up. `masked_lm` and
    `num_pair_labels` say whether the encoder's pretraining heads are there.
    """

    model_type = "divan_palm"

    family: str = "palm"
    vocab_size: int = 21128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_decoder_layers: int = 12
    num_attention_heads: int = 12
    decoder_attention_heads: int = 0
    intermediate_size: int = 3072
    decoder_intermediate_size: int = 0
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    ln_type: str = "postln"
    final_layer_norm: bool = False
    position_offset: int = 0
    vocab_padding_multiple: int = 1
    copy: str = "none"
    masked_lm: bool = False
    num_pair_labels: int = 0
    classifier_dropout: float = 0.1
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = True

    def has(self, particular: str) -> bool:
        """Return whether the family has a particular of the table."""
        if self.family not in PARTICULAR:
            raise ValueError(f"family is {self.family!r}; expected one of {', '.join(PARTICULAR)}")
        return particular in PARTICULAR[self.family]

    @property
    def table_rows(self) -> int:
        """The rows of a word table."""
        return -(-self.vocab_size // self.vocab_padding_multiple) * self.vocab_padding_multiple

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> DivanPalmConfig:
        """Return the shape of the decoder's stack if it is asked for, as generation's cache does; else this."""
        if not decoder or encoder:
            return self
        stack = copy.deepcopy(self)
        stack.num_hidden_layers = self.num_decoder_layers
        stack.num_attention_heads = self.decoder_attention_heads or self.num_attention_heads
        stack.intermediate_size = self.decoder_intermediate_size or self.intermediate_size
        if self.has("own_decoder"):
            stack.hidden_act, stack.layer_norm_eps, stack.ln_type = "gelu_new", 1e-6, "preln"
            stack.final_layer_norm = True
        return stack
