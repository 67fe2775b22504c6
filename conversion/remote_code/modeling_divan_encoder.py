"""Divan's encoders for transformers: BERT (Devlin et al. 2019), ALBERT (Lan et al. 2020) and albert_zh, in variants.

Serves models that transformers has no class for: pre-LN, a final LayerNorm, a feed-forward in groups, any sharing of
layers. Shared layers are stored once. Legend of shapes: B batch, L length, D width, N heads, H head size, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput
from transformers.utils.generic import can_return_tuple

from .configuration_divan_encoder import DivanEncoderConfig


class GroupedLinear(nn.Module):
    """A linear layer in G independent groups: input feature i belongs to group i mod G, output is group after group."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(groups, outputs // groups, inputs // groups))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        grouped = x.unflatten(-1, (-1, self.groups))
        return torch.einsum("...ig,goi->...go", grouped, self.weight).flatten(-2) + self.bias


class Embeddings(nn.Module):
    """Token ids -> x [B, L, D]."""

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.projects_first = config.has("projects_first")
        self.word_embeddings = nn.Embedding(config.table_rows, config.embedding_width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.sum_width)
        self.token_type_embeddings = None
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.sum_width)
        self.LayerNorm = nn.LayerNorm(config.sum_width, config.layer_norm_eps)
        self.embedding_hidden_mapping_in = None
        if config.projects:
            bias = not self.projects_first
            self.embedding_hidden_mapping_in = nn.Linear(config.embedding_width, config.hidden_size, bias=bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, token_type_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Embed tokens, given by their ids or by their vectors; token types are 0 by default."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, and not both")
        x = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        projection, first = self.embedding_hidden_mapping_in, self.config.position_offset
        if projection is not None and self.projects_first:
            x = projection(x)
        if first + x.shape[1] > self.config.max_position_embeddings:
            most = self.config.max_position_embeddings - first
            raise ValueError(f"sequences of {x.shape[1]} tokens, but this model has {most} positions: shorten them")
        x = x + self.position_embeddings.weight[first : first + x.shape[1]]
        if self.token_type_embeddings is not None:
            # One type serves all, whatever is given.
            given = token_type_ids is not None and self.config.type_vocab_size > 1
            x = x + (self.token_type_embeddings(token_type_ids) if given else self.token_type_embeddings.weight[0])
        x = self.dropout(self.LayerNorm(x))
        return x if projection is None or self.projects_first else projection(x)


class Brick(GradientCheckpointingLayer):
    """A function of x with its residual connection and its LayerNorm, before (pre-LN) or after (post-LN)."""

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__()
        self.preln = config.ln_type == "preln"
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def compute(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return what is added to x."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the next x [B, L, D]; `mask` is added to the scores of attention."""
        y = x + self.dropout(self.compute(self.LayerNorm(x) if self.preln else x, mask))
        return y if self.preln else self.LayerNorm(y)


class Attention(Brick):
    """Multi-head self-attention."""

    def __init__(self, config: DivanEncoderConfig, heads: int) -> None:
        super().__init__(config)
        width = config.hidden_size
        inner = heads * (width // config.num_attention_heads)
        self.heads = heads
        self.rate = config.attention_probs_dropout_prob
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.dense = nn.Linear(inner, width)

    def compute(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend."""
        projected = (part(x) for part in (self.query, self.key, self.value))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        rate = self.rate if self.training else 0.0
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        return self.dense(context.transpose(1, 2).flatten(2))


class FeedForward(Brick):
    """Linear, activation, linear."""

    def __init__(self, config: DivanEncoderConfig, inner: int) -> None:
        super().__init__(config)
        width, groups = config.hidden_size, config.ffn_groups
        self.activation = ACT2FN[config.hidden_act]
        if groups == 1:
            self.intermediate, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        else:
            self.intermediate, self.output = GroupedLinear(width, inner, groups), GroupedLinear(inner, width, groups)

    def compute(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Transform every position alone."""
        return self.output(self.activation(self.intermediate(x)))


class Encoder(nn.Module):
    """Blocks of an attention and a feed-forward each, distinct or shared."""

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__()
        self.order = [(str(i), str(j)) for i, j in config.bricks]
        attentions, feed_forwards = (sorted({pair[side] for pair in config.bricks}) for side in (0, 1))
        heads = config.heads_by_brick or [config.num_attention_heads] * len(attentions)
        units = config.units_by_brick or [config.intermediate_size] * len(feed_forwards)
        self.attention = nn.ModuleDict(
            {str(i): Attention(config, own) for i, own in zip(attentions, heads, strict=True)}
        )
        self.feed_forward = nn.ModuleDict(
            {str(j): FeedForward(config, own) for j, own in zip(feed_forwards, units, strict=True)}
        )
        self.LayerNorm = None
        if config.final_layer_norm:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.times = 2 if config.has("normalizes_twice") else 1

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the last state, and the states before the first and after every block."""
        states = [x]
        for i, j in self.order:
            states.append(self.feed_forward[j](self.attention[i](states[-1], mask), mask))
        x = states[-1]
        for _ in range(self.times if self.LayerNorm is not None else 0):
            x = self.LayerNorm(x)  # pyright: ignore[reportOptionalCall]
        return x, tuple(states)


class Predictions(nn.Module):
    """States -> scores over the vocabulary, through the word table."""

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.sum_width)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.sum_width, config.layer_norm_eps)
        self.decoder = nn.Linear(config.embedding_width, config.table_rows)
        self.config = config

    def forward(self, x: Tensor, embeddings: Embeddings) -> Tensor:
        """Return the scores of the vocabulary's words, without the rows that only pad the table."""
        x = self.LayerNorm(self.activation(self.dense(x)))
        if embeddings.projects_first and embeddings.embedding_hidden_mapping_in is not None:
            x = x @ embeddings.embedding_hidden_mapping_in.weight
        return self.decoder(x)[..., : self.config.vocab_size]


class DivanEncoderPreTrainedModel(PreTrainedModel):
    """What the models have in common."""

    config: DivanEncoderConfig
    config_class = DivanEncoderConfig
    base_model_prefix = "divan"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Attention", "FeedForward", "Embeddings"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GroupedLinear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the word table; see transformers."""
        table = super().resize_token_embeddings(*args, **kwargs)
        self.config.vocab_padding_multiple = 1
        return table


class DivanEncoderModel(DivanEncoderPreTrainedModel):
    """The encoder alone: states of all tokens, and the pooled vector."""

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the word table."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word table."""
        self.embeddings.word_embeddings = value  # pyright: ignore[reportAttributeAccessIssue]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode tokens; `attention_mask` is 1 for tokens, 0 for padding, and 1 everywhere by default."""
        x = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        mask = None
        if attention_mask is not None:
            # Finite: a row without any token becomes uniform, and not NaN.
            lowest = torch.finfo(x.dtype).min / 2
            mask = torch.zeros_like(attention_mask, dtype=x.dtype).masked_fill(attention_mask == 0, lowest)
            mask = mask[:, None, None, :]
        x, states = self.encoder(x, mask)
        pooled = x[:, 0]
        if not self.config.has("pools_first_state"):
            pooled = torch.tanh(self.pooler(pooled))
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutputWithPooling(
            last_hidden_state=x,  # pyright: ignore[reportArgumentType]
            pooler_output=pooled,  # pyright: ignore[reportArgumentType]
            hidden_states=states if wanted else None,  # pyright: ignore[reportArgumentType]
        )


class ScoringModel(DivanEncoderPreTrainedModel):
    """An encoder with scores over the vocabulary, through the word table."""

    _tied_weights_keys = {"predictions.decoder.weight": "divan.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__(config)
        self.divan = DivanEncoderModel(config)
        self.predictions = Predictions(config)

    def get_output_embeddings(self) -> nn.Module:
        """Return the scores' matrix, which is the word table."""
        return self.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the scores' matrix."""
        self.predictions.decoder = new_embeddings  # pyright: ignore[reportAttributeAccessIssue]


class DivanEncoderForPreTraining(ScoringModel):
    """Scores of masked words and of sentence pairs."""

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__(config)
        self.seq_relationship = nn.Linear(config.hidden_size, config.num_pair_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BertForPreTrainingOutput:
        """Score; the loss is the sum of those whose labels are given (words of label -100 do not count)."""
        outputs = self.divan(input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states)
        words = self.predictions(outputs.last_hidden_state, self.divan.embeddings)
        pairs = self.seq_relationship(outputs.pooler_output)
        losses = []
        if labels is not None:
            losses.append(functional.cross_entropy(words.flatten(0, 1), labels.flatten()))
        if next_sentence_label is not None:
            losses.append(functional.cross_entropy(pairs, next_sentence_label.flatten()))
        return BertForPreTrainingOutput(
            loss=sum(losses) if losses else None,  # pyright: ignore[reportArgumentType]
            prediction_logits=words,
            seq_relationship_logits=pairs,
            hidden_states=outputs.hidden_states,
        )


class DivanEncoderForMaskedLM(ScoringModel):
    """Scores of masked words."""

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> MaskedLMOutput:
        """Score; words of label -100 do not count in the loss."""
        outputs = self.divan(input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states)
        words = self.predictions(outputs.last_hidden_state, self.divan.embeddings)
        loss = None if labels is None else functional.cross_entropy(words.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=words, hidden_states=outputs.hidden_states)  # pyright: ignore[reportArgumentType]


class DivanEncoderForSequenceClassification(DivanEncoderPreTrainedModel):
    """Classes of a text or a pair, or a number, from the pooled vector."""

    def __init__(self, config: DivanEncoderConfig) -> None:
        super().__init__(config)
        self.divan = DivanEncoderModel(config)
        self.pooled_layer_norm = None
        if config.has("normalizes_pooled") and config.ln_type == "preln":
            self.pooled_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify; the loss is that of `config.problem_type`, which transformers tells from the labels."""
        outputs = self.divan(input_ids, attention_mask, token_type_ids, inputs_embeds, output_hidden_states)
        pooled = outputs.pooler_output
        if self.pooled_layer_norm is not None:
            pooled = self.pooled_layer_norm(pooled)
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)  # pyright: ignore[reportArgumentType]
