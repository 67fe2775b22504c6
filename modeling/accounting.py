"""Count parameters, floating-point operations and memory of a training step before anything is allocated.

Operations are those of matrix products, the convention of Kaplan et al. (2020, section 2.1) and of every published
model FLOP utilisation; unlike theirs they include attention scores and the vocabulary, and no layer is approximated.
Each brick counts its own; here they are summed over a model that is declared but not allocated. Memory is that of the
JAX engine: the state between steps is exact; activations follow what reverse mode keeps of each operation (cf.
Korthikanti et al. 2022, section 4), with factors that were fitted to XLA's own analysis.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from modeling.computation import Sizes
from modeling.config import Config
from modeling.heads import MaskedLMHead, NextTokenHead, PairHead
from modeling.model import LanguageModel
from modeling.variables import count_declared, declared


@functools.lru_cache(maxsize=16)
def declared_model(config: Config, num_pair_labels: int) -> LanguageModel:
    """Return the model of a config with its heads of pretraining, without values; a plan asks for it many times."""
    pair = [functools.partial(PairHead, num_labels=num_pair_labels)] if num_pair_labels else []
    target = [NextTokenHead] if config.num_decoder_layers else []
    return declared(lambda: LanguageModel(config, [MaskedLMHead, *pair, *target]))


def parameter_count(config: Config, num_pair_labels: int = 2) -> int:
    """Return the parameters of a `PretrainingModel`, those of its heads included."""
    return count_declared(declared_model(config, num_pair_labels))


def flops_per_example(
    config: Config, length: int, predictions: int, target: int = 0, other: int = 0, written: int = 0
) -> int:
    """Return the floating-point operations of one example in pretraining: forward, and twice that backward.

    Operations that rematerialisation repeats are not counted, nor is the sentence-pair head.

    Args:
        config: the model's.
        length: tokens of the example, padding included.
        predictions: positions that are scored over the vocabulary.
        target: positions of the decoder, which are all scored.
        other: tokens of the other text, in a model that reads two beside each other; `predictions` are those of both.
        written: tokens that the model itself writes behind the text, in a forward pass of its own, and then reads.
    """
    model = declared_model(config, 0)
    learnt = 3 * model.operations(Sizes(length + written, scored=predictions, target=target, other=other))
    return learnt + (model.operations(Sizes(length, scored=written, queries=written)) if written else 0)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a step is computed: sizes of the whole batch, and the parts into which batch and weights are cut."""

    batch_size: int
    length: int
    predictions: int
    target: int = 0
    other: int = 0
    written: int = 0
    half_precision: bool = False
    remat: bool = False
    scan: bool = False
    averaged: bool = False
    micro_batches: int = 1
    data_parts: int = 1
    model_parts: int = 1
    fsdp: bool = False
    cpu: bool = False

    @property
    def sizes(self) -> Sizes:
        """The lengths of an example."""
        return Sizes(self.length + self.written, scored=self.predictions, target=self.target, other=self.other)

    @property
    def state_parts(self) -> int:
        """Parts that weights and optimizer state are cut into."""
        return self.model_parts * (self.data_parts if self.fsdp else 1)

    @property
    def examples(self) -> float:
        """Examples of one micro-batch on one device."""
        return self.batch_size / self.data_parts / self.micro_batches


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device: the state between steps by name, and what a step adds."""

    held: Mapping[str, float]
    gradients: float
    activations: float

    @property
    def peak(self) -> float:
        """The most at any moment of a step."""
        return sum(self.held.values()) + self.gradients + self.activations


def step_memory(config: Config, layout: Layout) -> StepMemory:
    """Return the bytes that a training step of a `PretrainingModel` with an optimizer of two slots needs on one device.

    On a CPU XLA computes bfloat16 in float32 and merges unrolled rematerialisation with the first computation, so that
    neither saves anything; in a loop (`scan`) rematerialisation saves memory there too.
    """
    model = declared_model(config, 2)
    cut = layout.model_parts
    parameters = count_declared(model)
    weights = 4 * parameters / layout.state_parts
    held = {"weights": weights, "optimizer slots": 2 * weights} | ({"average": weights} if layout.averaged else {})
    item = 2 if layout.half_precision and not layout.cpu else 4
    blocks = [
        _Elements(
            layout.examples * block.dense, layout.examples * block.inner / cut, layout.examples * block.scores / cut
        )
        for block in model.backbone.states(layout.sizes)
    ]
    logits = layout.examples * (layout.predictions + layout.target) * config.padded_vocab_size / cut
    table = config.padded_vocab_size * config.embedding_size

    # Bytes kept for each element: LayerNorms in float32, masks in bytes, the rest in the type of the computation. The
    # factors were fitted to blocks of two bricks, each of which has its own dense states.
    dense_factor = 13 + (5 if config.hidden_dropout_prob else 3.75) * item
    scores_factor = 4 + (4 if config.attention_probs_dropout_prob else 1.6) * item
    kept_by_block = [dense_factor * x.dense + 2.25 * item * x.inner + scores_factor * x.scores for x in blocks]
    if layout.remat and (layout.scan or not layout.cpu):
        # The inputs of all blocks, as states too, and everything of the one whose gradient is taken.
        kept = sum(item * x.dense for x in blocks) + max(kept_by_block)
    elif layout.scan:
        # XLA keeps every loop carry as written; it never recomputes one to save memory.
        kept = sum((13 + 5 * item) * x.dense + 8 * item * x.inner + (5 + 2 * item) * x.scores for x in blocks)
    else:
        kept = sum(kept_by_block)
    if layout.scan and config.sharing == "none":
        # Weights stacked for the loop, their gradients, and these taken apart.
        kept += 3 * item * (parameters - table) / cut
    largest = blocks[kept_by_block.index(max(kept_by_block))]
    around = 5 * item * largest.dense + 0.4 * item * (largest.inner + largest.scores) + 16 * logits
    # The word table has a gradient from the lookup and one from the logits. Micro-batches add up beside that of one.
    gradients = weights * (2 if layout.micro_batches > 1 else 1) + 4 * table / layout.state_parts
    # What is written is scored before anything is learnt, and no score is kept.
    scores = 8 * layout.examples * layout.written * config.padded_vocab_size / cut
    return StepMemory(held, gradients, max(kept + around, scores))


@dataclass(frozen=True)
class _Elements:
    """States of one block in a micro-batch, on one device."""

    dense: float
    inner: float
    scores: float


def collective_bytes(config: Config, layout: Layout) -> dict[str, float]:
    """Return the bytes that one device sends in a step, by kind of collective."""
    weights = 4 * parameter_count(config) / layout.model_parts
    item = 2 if layout.half_precision else 4
    sent: dict[str, float] = {}
    if layout.data_parts > 1 and layout.fsdp:
        # Gathered forward and again backward; gradients scattered.
        sent["all-gather"] = 2 * layout.micro_batches * weights * item / 4
        sent["reduce-scatter"] = layout.micro_batches * weights
    elif layout.data_parts > 1:
        sent["all-reduce"] = weights
    if layout.model_parts > 1:
        # A sum a brick forward and one backward, two bricks a block (Shoeybi et al. 2019, section 3).
        positions = declared_model(config, 2).backbone.computed_positions(layout.sizes)
        dense = item * layout.examples * layout.micro_batches * config.hidden_size
        sent["all-reduce"] = sent.get("all-reduce", 0.0) + 2 * positions * dense
    return sent
