"""Configuration of Divan's encoders for transformers: BERT, ALBERT, albert_zh and PALM's encoder, in every variant."""

from __future__ import annotations

from transformers import PretrainedConfig

# What is particular to a family: the word vector is projected before positions are added; a classifier normalises the
# pooled vector (in the pre-LN graph); the pooled vector is the first state itself; the last LayerNorm comes twice.
PARTICULAR: dict[str, frozenset[str]] = {
    "bert": frozenset(),
    "albert": frozenset(),
    "albert_zh": frozenset({"projects_first", "normalizes_pooled"}),
    "palm": frozenset({"pools_first_state", "normalizes_twice"}),
    "palm_en": frozenset(),
}


class DivanEncoderConfig(PretrainedConfig):
    """Choices that decide the graph and the shapes of its weights, under the names that BERT and ALBERT gave them.

    `family` is the published graph. Without `embedding_size` the embedding is as wide as the model, and is projected
    where it is not or `projects_equal_widths` says so. `ln_type` is "postln" or "preln". `sharing` ("all",
    "attention", "ffn", "none") is what the layers of a group share. The feed-forward falls into `ffn_groups` parts.
    `heads_by_brick` and `units_by_brick` are those that pruning has left of each distinct attention and feed-forward.
    `position_offset` rows of the position table come before the first token's, and `vocab_padding_multiple` rounds the
    rows of the word table up. `num_pair_labels` is the number of classes of a pair of sentences.
    """

    model_type = "divan_encoder"

    family: str = "bert"
    vocab_size: int = 21128
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    embedding_size: int = 0
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    ln_type: str = "postln"
    final_layer_norm: bool = False
    sharing: str = "none"
    num_hidden_groups: int = 1
    inner_group_num: int = 1
    ffn_groups: int = 1
    position_offset: int = 0
    vocab_padding_multiple: int = 1
    projects_equal_widths: bool = False
    heads_by_brick: list[int] | None = None
    units_by_brick: list[int] | None = None
    num_pair_labels: int = 2
    classifier_dropout: float = 0.1
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def has(self, particular: str) -> bool:
        """Return whether the family has a particular of the table."""
        if self.family not in PARTICULAR:
            raise ValueError(f"family is {self.family!r}; expected one of {', '.join(PARTICULAR)}")
        return particular in PARTICULAR[self.family]

    @property
    def embedding_width(self) -> int:
        """The width of the word table."""
        return self.embedding_size or self.hidden_size

    @property
    def sum_width(self) -> int:
        """The width in which words, positions and token types are added up and normalised."""
        return self.hidden_size if self.has("projects_first") else self.embedding_width

    @property
    def projects(self) -> bool:
        """Whether word vectors are projected to the model's width."""
        return self.embedding_width != self.hidden_size or self.projects_equal_widths

    @property
    def table_rows(self) -> int:
        """The rows of the word table."""
        return -(-self.vocab_size // self.vocab_padding_multiple) * self.vocab_padding_multiple

    @property
    def bricks(self) -> list[tuple[int, int]]:
        """The numbers of attention and feed-forward of every block in order; shared ones have one number."""
        numbers = []
        for layer in range(self.num_hidden_layers):
            group = layer * self.num_hidden_groups // self.num_hidden_layers
            for inner in range(self.inner_group_num):
                shared, own = (place * self.inner_group_num + inner for place in (group, layer))
                attention = shared if self.sharing in ("all", "attention") else own
                numbers.append((attention, shared if self.sharing in ("all", "ffn") else own))
        return numbers
