"""PALM (Bi et al. 2020) and PLUG (AliceMind) for transformers: both released graphs, with or without copied words.

Weights have the names of the releases: a table for each graph says under which path a block keeps its parts. Copying
is normalised once, unlike in the English release, whose second softmax "legacy_attention" keeps. Legend of shapes:
B batch, T target, S source, D width, N heads, H head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
    Seq2SeqSequenceClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from .configuration_divan_palm import DivanPalmConfig

LEAST = 1e-30
"""Added to probabilities of copying before their logarithm: a word that the source lacks has none."""


@dataclass(frozen=True)
class BlockNames:
    """Where a block keeps its parts: projections of query, key and value (joined or not), outputs, LayerNorms."""

    projections: tuple[str, ...]
    output: str
    norm: str
    inner: str
    outer: str
    inner_norm: str
    cross_projections: tuple[str, ...] = ()
    cross_output: str = ""
    cross_norm: str = ""


@dataclass(frozen=True)
class Names:
    """Where a release keeps its parts; `scores` is the output matrix without and with copied words."""

    encoder: str
    encoder_block: BlockNames
    decoder: str
    layers: str
    last_norm: str
    decoder_block: BlockNames
    words: str
    scores: tuple[str, str]
    gate: str
    copying: str


NAMES = {
    "palm": Names(
        encoder="bert",
        encoder_block=BlockNames(
            projections=("attention.self.query_key_value",),
            output="attention.output.dense",
            norm="attention.LayerNorm",
            inner="intermediate.dense",
            outer="output.dense",
            inner_norm="LayerNorm",
        ),
        decoder="decoder.decoder",
        layers="layer",
        last_norm="final_layernorm",
        decoder_block=BlockNames(
            projections=("attention.query_key_value",),
            output="attention.dense",
            norm="input_layernorm",
            inner="intermediate",
            outer="output",
            inner_norm="post_cross_attention_layernorm",
            cross_projections=("cross_attention.query", "cross_attention.key_value"),
            cross_output="cross_attention.dense",
            cross_norm="post_attention_layernorm",
        ),
        words="bert.embeddings.word_embeddings",
        scores=("lm_head", "lm_head"),
        gate="copy.gate",
        copying="copy.attention",
    ),
    "palm_en": Names(
        encoder="bert.model",
        encoder_block=BlockNames(
            projections=("attention.self.query", "attention.self.key", "attention.self.value"),
            output="attention.output.dense",
            norm="attention.output.LayerNorm",
            inner="intermediate.dense",
            outer="output.dense",
            inner_norm="output.LayerNorm",
        ),
        decoder="decoder",
        layers="transformer_layers",
        last_norm="layer_norm",
        decoder_block=BlockNames(
            projections=("self_attn.linear_query", "self_attn.linear_keys", "self_attn.linear_values"),
            output="self_attn.final_linear",
            norm="layer_norm_1",
            inner="feed_forward.w_1",
            outer="feed_forward.w_2",
            inner_norm="feed_forward.layer_norm",
            cross_projections=("context_attn.linear_query", "context_attn.linear_keys", "context_attn.linear_values"),
            cross_output="context_attn.final_linear",
            cross_norm="layer_norm_2",
        ),
        words="decoder.embeddings",
        scores=("generator.0", "generator.gen_proj"),
        gate="generator.prob_proj",
        copying="generator.attention",
    ),
}


def place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module under a path of names separated by dots; `root.get_submodule(path)` finds it."""
    *holders, name = path.split(".")
    for holder in holders:
        if holder not in dict(root.named_children()):
            root.add_module(holder, nn.Module())
        root = root.get_submodule(holder)
    root.add_module(name, module)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask to be added to scores: 0 where kept, else finite, so that a row without a key becomes uniform."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == 0, torch.finfo(dtype).min / 2)


class Block(GradientCheckpointingLayer):
    """Attention, cross-attention in a decoder, and feed-forward, each with a residual connection and a LayerNorm."""

    def __init__(self, config: DivanPalmConfig, names: BlockNames, number: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.names = names
        self.number = number
        self.heads = config.num_attention_heads
        self.preln = config.ln_type == "preln"
        self.rate = config.attention_probs_dropout_prob
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        for path in names.projections:
            place(self, path, nn.Linear(width, 3 * width // len(names.projections)))
        for k, path in enumerate(names.cross_projections):
            place(self, path, nn.Linear(width, width if k == 0 else 2 * width // (len(names.cross_projections) - 1)))
        for path in filter(None, (names.output, names.cross_output)):
            place(self, path, nn.Linear(width, width))
        place(self, names.inner, nn.Linear(width, inner))
        place(self, names.outer, nn.Linear(inner, width))
        for path in filter(None, (names.norm, names.cross_norm, names.inner_norm)):
            place(self, path, nn.LayerNorm(width, config.layer_norm_eps))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        returns_attention: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the next x [B, T, D], and where cross-attention looks, [B, T, S], the mean over the heads.

        Args:
            x: of the sequence, or of its newest tokens.
            mask: added to the scores of self-attention.
            memory: states of the source, which cross-attention reads.
            memory_mask: added to its scores.
            past_key_values: keys and values of earlier tokens and of the source.
            returns_attention: whether to return the second value.
        """
        names, attention = self.names, None
        h = self._before(names.norm, x)
        query, key, value = self._projected(names.projections, h, 3)
        if past_key_values is not None:
            key, value = past_key_values.self_attention_cache.update(key, value, self.number)
        x = self._after(names.norm, x, self._attended(names.output, query, key, value, mask))
        if memory is not None:
            h = self._before(names.cross_norm, x)
            (query,) = self._projected(names.cross_projections[:1], h, 1)
            key, value = self._of_memory(memory, past_key_values)
            if returns_attention:
                scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
                scores = scores.float() if memory_mask is None else scores.float() + memory_mask
                attention = scores.softmax(-1).mean(1)
            x = self._after(names.cross_norm, x, self._attended(names.cross_output, query, key, value, memory_mask))
        h = self.activation(self.get_submodule(names.inner)(self._before(names.inner_norm, x)))
        return self._after(names.inner_norm, x, self.get_submodule(names.outer)(h)), attention

    def _before(self, norm: str, x: Tensor) -> Tensor:
        return self.get_submodule(norm)(x) if self.preln else x

    def _after(self, norm: str, x: Tensor, change: Tensor) -> Tensor:
        x = x + self.dropout(change)
        return x if self.preln else self.get_submodule(norm)(x)

    def _projected(self, paths: tuple[str, ...], x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Return as many [B, N, T, H] as there are parts."""
        joined = torch.cat([self.get_submodule(path)(x) for path in paths], dim=-1)
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in joined.chunk(parts, dim=-1))

    def _of_memory(self, memory: Tensor, past_key_values: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        """Return keys and values of the source, which are computed once where there is a cache."""
        if past_key_values is not None and past_key_values.is_updated.get(self.number):
            layer: Any = past_key_values.cross_attention_cache.layers[self.number]
            return layer.keys, layer.values
        key, value = self._projected(self.names.cross_projections[1:], memory, 2)
        if past_key_values is not None:
            key, value = past_key_values.cross_attention_cache.update(key, value, self.number)
            past_key_values.is_updated[self.number] = True
        return key, value

    def _attended(self, output: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        rate = self.rate if self.training else 0.0
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        return self.get_submodule(output)(context.transpose(1, 2).flatten(2))


class Embeddings(nn.Module):
    """Token ids -> x [B, L, D]: words, positions and token types, normalised."""

    def __init__(self, config: DivanPalmConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.table_rows, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, position: int = 0) -> Tensor:
        """Embed tokens, the first of which is at `position`; token types are 0 by default."""
        first = self.config.position_offset + position
        last = first + input_ids.shape[1]
        if last > self.config.max_position_embeddings:
            most = self.config.max_position_embeddings - self.config.position_offset
            raise ValueError(f"{last - first + position} tokens, but this model has {most} positions: shorten the text")
        x = self.word_embeddings(input_ids) + self.position_embeddings.weight[first:last]
        if self.token_type_embeddings is not None:
            # One type serves all, whatever is given.
            given = token_type_ids is not None and self.config.type_vocab_size > 1
            x = x + (self.token_type_embeddings(token_type_ids) if given else self.token_type_embeddings.weight[0])
        return self.dropout(self.LayerNorm(x))


class ScaledEmbeddings(nn.Embedding):
    """The English decoder's: words times the square root of the width, plus sinusoids (Vaswani et al. 2017)."""

    def __init__(self, config: DivanPalmConfig) -> None:
        super().__init__(config.table_rows, config.hidden_size)
        self.rate = config.hidden_dropout_prob

    def embedded(self, input_ids: Tensor, position: int) -> Tensor:
        """Embed tokens, the first of which is at `position`."""
        width = self.embedding_dim
        # On the CPU, in double precision: of a large position single precision loses the angle.
        places = torch.arange(position, position + input_ids.shape[1], dtype=torch.float64, device="cpu")
        periods = 10000.0 ** (torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
        angles = places[:, None] / periods
        sinusoids = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        x = self(input_ids) * width**0.5 + sinusoids.to(self.weight.device, self.weight.dtype)
        return functional.dropout(x, self.rate, self.training)


@dataclass
class DivanPalmEncoderOutput(BaseModelOutputWithPooling):
    """States of the source, and its ids, from which the decoder copies."""

    source_ids: Tensor | None = None


class PalmEncoder(nn.Module):
    """Embeddings, blocks and pooler: source ids -> states."""

    def __init__(self, config: DivanPalmConfig, names: BlockNames) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        blocks = nn.ModuleList(Block(config, names, k) for k in range(config.num_hidden_layers))
        place(self, "encoder.layer", blocks)
        if config.final_layer_norm:
            place(self, "encoder.LayerNorm", nn.LayerNorm(config.hidden_size, config.layer_norm_eps))
        place(self, "pooler.dense", nn.Linear(config.hidden_size, config.hidden_size))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **settings: object,
    ) -> DivanPalmEncoderOutput:
        """Encode the source; `attention_mask` is 1 for tokens, 0 for padding, and 1 everywhere by default.

        Other settings that `generate` passes on change nothing.
        """
        states = [self.embeddings(input_ids, token_type_ids)]
        mask = None if attention_mask is None else additive(attention_mask, states[0].dtype)[:, None, None]
        for block in self.get_submodule("encoder.layer").children():
            states.append(block(states[-1], mask)[0])
        x = states[-1]
        if self.config.final_layer_norm:
            norm = self.get_submodule("encoder.LayerNorm")
            # The released code, which is the Chinese one, normalises the last state twice.
            x = norm(norm(x))
        return DivanPalmEncoderOutput(
            last_hidden_state=x,  # pyright: ignore[reportArgumentType]
            pooler_output=self.pooled(x),  # pyright: ignore[reportArgumentType]
            hidden_states=tuple(states) if output_hidden_states else None,  # pyright: ignore[reportArgumentType]
            source_ids=input_ids,
        )

    def pooled(self, x: Tensor) -> Tensor:
        """Return the vector of the whole text; the released Chinese pooler has weights, which nothing reads."""
        pooled = x[:, 0]
        return (
            pooled if self.config.has("pools_first_state") else torch.tanh(self.get_submodule("pooler.dense")(pooled))
        )


class PalmDecoder(nn.Module):
    """Blocks with cross-attention: embedded target, source -> states of the target."""

    def __init__(self, config: DivanPalmConfig, names: Names) -> None:
        super().__init__()
        self.names = names
        self.embeddings = ScaledEmbeddings(config) if config.has("own_decoder") else None
        blocks = nn.ModuleList(Block(config, names.decoder_block, k) for k in range(config.num_hidden_layers))
        self.add_module(names.layers, blocks)
        if config.final_layer_norm:
            self.add_module(names.last_norm, nn.LayerNorm(config.hidden_size, config.layer_norm_eps))
        self.normalizes = config.final_layer_norm
        self.copies_by_attention = config.copy in ("attention", "legacy_attention")

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        target_mask: Tensor | None,
        past_key_values: EncoderDecoderCache | None,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Return the last state, all states, and where the last block looks if words are copied from there."""
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = x.shape[1]
        mask = torch.ones(length, past + length, dtype=torch.bool, device=x.device).tril(past)[None, None]
        if target_mask is not None:
            mask = mask & target_mask[:, None, None].bool()
        mask = additive(mask, x.dtype)
        blocks = list(self.get_submodule(self.names.layers).children())
        states, attention = [x], None
        for block in blocks:
            wanted = self.copies_by_attention and block is blocks[-1]
            x, attention = block(
                states[-1], mask, memory, memory_mask, past_key_values=past_key_values, returns_attention=wanted
            )
            states.append(x)
        if self.normalizes:
            x = self.get_submodule(self.names.last_norm)(x)
        return x, tuple(states), attention


class DivanPalmPreTrainedModel(PreTrainedModel):
    """The encoder and the decoder of all models here."""

    config: DivanPalmConfig
    config_class = DivanPalmConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block", "Embeddings"]  # noqa: RUF012

    def __init__(self, config: DivanPalmConfig) -> None:
        super().__init__(config)
        names = NAMES[config.family]
        self.names = names
        place(self, names.encoder, PalmEncoder(config, names.encoder_block))
        place(self, names.decoder, PalmDecoder(config.get_text_config(decoder=True), names))

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the encoder, which `generate` calls once."""
        return self.get_submodule(self.names.encoder)

    def get_decoder(self) -> nn.Module:
        """Return the decoder."""
        return self.get_submodule(self.names.decoder)

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's word table."""
        return self.get_submodule(f"{self.names.encoder}.embeddings.word_embeddings")

    def resize_token_embeddings(self, *args: object, **kwargs: object) -> nn.Embedding:
        """Refuse: the tables and biases of the vocabulary belong together."""
        raise NotImplementedError("the vocabulary of this model has a fixed size: use its unused words")

    def encoded_and_decoded(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None,
        encoder_outputs: DivanPalmEncoderOutput | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        output_hidden_states: bool | None,
    ) -> tuple[Seq2SeqModelOutput, Tensor, Tensor | None]:
        """Return the states, the source's ids, and where the last block of the decoder looks if that is copied."""
        encoder, decoder = self.get_encoder(), self.get_decoder()
        assert isinstance(encoder, PalmEncoder)
        assert isinstance(decoder, PalmDecoder)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        encoded: Any = encoder_outputs or encoder(input_ids, attention_mask, token_type_ids, wanted)
        memory: Any = encoded.last_hidden_state
        source_ids: Any = getattr(encoded, "source_ids", input_ids)
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        if past_key_values is not None and not isinstance(past_key_values, EncoderDecoderCache):
            raise ValueError(f"past_key_values is a {type(past_key_values).__name__}; expected an EncoderDecoderCache")
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if decoder.embeddings is not None:
            x = decoder.embeddings.embedded(decoder_input_ids, past)
        else:
            x = encoder.embeddings(decoder_input_ids, position=past)
        memory_mask = None if attention_mask is None else additive(attention_mask, memory.dtype)[:, None, None]
        x, states, attention = decoder(x, memory, memory_mask, decoder_attention_mask, past_key_values)
        outputs = Seq2SeqModelOutput(
            last_hidden_state=x,
            past_key_values=past_key_values,  # pyright: ignore[reportArgumentType]
            decoder_hidden_states=states if wanted else None,  # pyright: ignore[reportArgumentType]
            encoder_last_hidden_state=memory,
            encoder_hidden_states=encoded.hidden_states,
        )
        return outputs, source_ids, attention


class DivanPalmModel(DivanPalmPreTrainedModel):
    """Source and target -> their states, without scores."""

    _keys_to_ignore_on_load_unexpected = [r"^cls\.", r"^generator\.", r"^copy\.", r"^classification_head", r"^lm_head"]  # noqa: RUF012

    def __init__(self, config: DivanPalmConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: DivanPalmEncoderOutput | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqModelOutput:
        """Encode the source and decode the target."""
        if decoder_input_ids is None:
            raise ValueError("give decoder_input_ids, the target behind its start token")
        outputs, _, _ = self.encoded_and_decoded(
            input_ids,
            attention_mask,
            token_type_ids,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            use_cache,
            output_hidden_states,
        )
        return outputs


class Copying(nn.Module):
    """The paper's own attention over the source, softmax over s of w . tanh(M h_s + W x_t + b)."""

    def __init__(self, config: DivanPalmConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.memory = nn.Linear(width, width, bias=False)
        self.state = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """Return the attention [B, T, S]."""
        projected = self.memory(memory)
        # Target after target: all at once would be [B, T, S, D] numbers.
        scores = torch.stack(
            [self.score(torch.tanh(projected + s[:, None]))[..., 0] for s in self.state(x).unbind(1)], 1
        )
        return (scores.float() if memory_mask is None else scores.float() + memory_mask[:, 0]).softmax(-1)


class DivanPalmForConditionalGeneration(DivanPalmPreTrainedModel, GenerationMixin):
    """Scores of the next word; with copied words they are log-probabilities, whose softmax is the same distribution."""

    _keys_to_ignore_on_load_unexpected = [r"^cls\.predictions\.decoder_weight$", r"^classification_head"]  # noqa: RUF012

    def __init__(self, config: DivanPalmConfig) -> None:
        super().__init__(config)
        names, width, copies = self.names, config.hidden_size, config.copy != "none"
        self.scores = names.scores[copies]
        place(self, self.scores, nn.Linear(width, config.table_rows, bias=config.has("own_decoder")))
        self._tied_weights_keys = {f"{self.scores}.weight": f"{names.words}.weight"}
        if copies:
            place(self, names.gate, nn.Linear(2 * width, 1))
        if config.copy == "additive":
            place(self, names.copying, Copying(config))
        if config.masked_lm:
            place(self, "cls.predictions.transform.dense", nn.Linear(width, width))
            place(self, "cls.predictions.transform.LayerNorm", nn.LayerNorm(width, config.layer_norm_eps))
            self.get_submodule("cls.predictions").bias = nn.Parameter(torch.zeros(config.table_rows))
        if config.num_pair_labels:
            place(self, "cls.seq_relationship", nn.Linear(width, config.num_pair_labels))
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the output matrix, which is the word table of the target."""
        return self.get_submodule(self.scores)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: DivanPalmEncoderOutput | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Seq2SeqLMOutput:
        """Score the words that follow `decoder_input_ids`, which are by default the labels behind the start token.

        The loss is the mean over the labels that are not -100.
        """
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give labels, or decoder_input_ids, the target behind its start token")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs, source_ids, attention = self.encoded_and_decoded(
            input_ids,
            attention_mask,
            token_type_ids,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            use_cache if labels is None else False,
            output_hidden_states,
        )
        x, memory = outputs.last_hidden_state, outputs.encoder_last_hidden_state
        assert x is not None
        assert memory is not None
        logits = self.get_submodule(self.scores)(x)[..., : self.config.vocab_size]
        if self.config.copy != "none":
            logits = self._with_copies(logits, x, memory, attention_mask, source_ids, attention)
        loss = None if labels is None else functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return Seq2SeqLMOutput(
            loss=loss,  # pyright: ignore[reportArgumentType]
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            encoder_last_hidden_state=memory,
            encoder_hidden_states=outputs.encoder_hidden_states,
        )

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return the labels behind the start token, without the last; -100 becomes padding."""
        start = self.config.decoder_start_token_id
        if start is None:
            raise ValueError("the config has no decoder_start_token_id: set it, or give decoder_input_ids")
        ids = labels.roll(1, dims=-1).masked_fill(labels.roll(1, dims=-1) == -100, self.config.pad_token_id or 0)
        return torch.cat([torch.full_like(ids[:, :1], start), ids[:, 1:]], dim=-1)

    def encoder_scores(self, encoder_last_hidden_state: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the scores of masked words and of sentence pairs, each where the checkpoint has the weights."""
        words, pairs, x = None, None, encoder_last_hidden_state
        if self.config.masked_lm:
            predictions = self.get_submodule("cls.predictions")
            h = ACT2FN[self.config.hidden_act](predictions.get_submodule("transform.dense")(x))
            h = predictions.get_submodule("transform.LayerNorm")(h)
            words = h @ self.get_input_embeddings().weight.T + predictions.bias
            words = words[..., : self.config.vocab_size]
        if self.config.num_pair_labels:
            encoder = self.get_encoder()
            assert isinstance(encoder, PalmEncoder)
            pairs = self.get_submodule("cls.seq_relationship")(encoder.pooled(x))
        return words, pairs

    def _with_copies(
        self,
        logits: Tensor,
        x: Tensor,
        memory: Tensor,
        attention_mask: Tensor | None,
        source_ids: Tensor,
        attention: Tensor | None,
    ) -> Tensor:
        """Return log-probabilities [B, T, V]: a gate mixes the vocabulary's distribution with the source's words.

        source [7 9 7], attention [0.5 0.3 0.2], gate 0.6, P_vocabulary(7) = 0.1 -> P(7) = 0.6 * 0.1 + 0.4 * 0.7
        """
        if attention is None:
            mask = None if attention_mask is None else additive(attention_mask, torch.float32)[:, None, None]
            attention = self.get_submodule(self.names.copying)(x, memory, mask)
        assert attention is not None
        context = attention.to(memory.dtype) @ memory
        gate = self.get_submodule(self.names.gate)(torch.cat([context, x], dim=-1)).float()
        logits = logits.float()
        copied = torch.zeros_like(logits).scatter_add_(2, source_ids[:, None].expand(attention.shape), attention)
        twice = self.config.copy == "legacy_attention"
        copied = copied.log_softmax(-1) if twice else (copied + LEAST).log()
        generated = functional.logsigmoid(gate) + logits.log_softmax(-1)
        return torch.logaddexp(generated, functional.logsigmoid(-gate) + copied)


class DivanPalmForSequenceClassification(DivanPalmPreTrainedModel):
    """Classes of a text or a pair from the encoder's pooled vector; the decoder is kept and not used."""

    _keys_to_ignore_on_load_unexpected = [r"^cls\.", r"^generator\.", r"^copy\.", r"^lm_head"]  # noqa: RUF012

    def __init__(self, config: DivanPalmConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        place(self, "classification_head/cls", nn.Linear(config.hidden_size, config.num_labels or 1))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Seq2SeqSequenceClassifierOutput:
        """Classify; the loss is that of `config.problem_type`, which transformers tells from the labels."""
        outputs = self.get_encoder()(input_ids, attention_mask, token_type_ids)
        logits = self.get_submodule("classification_head/cls")(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return Seq2SeqSequenceClassifierOutput(
            loss=loss, logits=logits, encoder_last_hidden_state=outputs.last_hidden_state
        )
