"""Parameters, floating-point operations and memory of a training step by closed form, before any of it exists.

Operations are those of matrix products, the convention of Kaplan et al. (2020, section 2.1) and of every published
model FLOP utilisation; unlike theirs they include attention scores and the vocabulary, and no layer is approximated.
Memory is that of the JAX engine: what stands between steps is exact; what a step adds follows what reverse mode keeps
of each operation (cf. Korthikanti et al. 2022, section 4), with factors that were fitted to XLA's own analysis.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from modeling.config import Config
from modeling.sharing import shared_bricks


def parameter_count(config: Config, num_pair_labels: int = 2) -> int:
    """Parameters of a `PretrainingModel`, those of its heads included."""
    vocab, width, embedding = config.padded_vocab_size, config.hidden_size, config.embedding_size
    narrow = width if config.family == "albert_zh" else embedding
    tables = vocab * embedding + (config.max_position_embeddings + config.type_vocab_size) * narrow + 2 * narrow
    if embedding != width:
        tables += embedding * width + (width if config.family != "albert_zh" else 0)
    bricks = shared_bricks(config)
    attention = 4 * (width * width + width) + 2 * width
    inner = config.intermediate_size
    feed_forward = 2 * width * inner // config.ffn_groups + inner + width + 2 * width
    blocks = len({k for k, _ in bricks}) * attention + len({k for _, k in bricks}) * feed_forward
    final = 2 * width if config.final_layer_norm else 0
    heads = width * width + width + width * narrow + 3 * narrow + vocab + num_pair_labels * (width + 1)
    return tables + blocks + final + heads


def flops_per_example(config: Config, length: int, predictions: int) -> int:
    """Floating-point operations of one example in training: forward, and twice that backward.

    A multiplication and an addition are two. What rematerialisation computes again is not counted.

    Args:
        config: the model's.
        length: tokens of the example, padding included.
        predictions: positions that are scored over the vocabulary.
    """
    width, embedding, inner = config.hidden_size, config.embedding_size, config.intermediate_size
    projections = 4 * 2 * length * width * width
    attention = 2 * 2 * length * length * width
    feed_forward = 2 * 2 * length * width * inner // config.ffn_groups
    forward = len(shared_bricks(config)) * (projections + attention + feed_forward)
    forward += 2 * width * width  # the pooler
    # Word vectors to the model's width, and back in front of the vocabulary.
    if embedding != width:
        forward += 2 * length * embedding * width
    if config.family == "albert_zh":
        forward += predictions * 2 * (width * width + (embedding * width if embedding != width else 0))
    else:
        forward += predictions * 2 * width * embedding
    forward += predictions * 2 * embedding * config.padded_vocab_size
    return 3 * forward


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a step is computed: sizes of the whole batch, and the parts it and the weights are cut into."""

    batch_size: int
    length: int
    predictions: int
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
    def state_parts(self) -> int:
        """Parts that weights and optimizer state are cut into."""
        return self.model_parts * (self.data_parts if self.fsdp else 1)

    @property
    def examples(self) -> float:
        """Examples of one micro-batch on one device."""
        return self.batch_size / self.data_parts / self.micro_batches


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device: what stands between steps by name, and what a step adds."""

    held: Mapping[str, float]
    gradients: float
    activations: float

    @property
    def peak(self) -> float:
        """The most at any moment of a step."""
        return sum(self.held.values()) + self.gradients + self.activations


def step_memory(config: Config, layout: Layout) -> StepMemory:
    """Return what a training step of a `PretrainingModel` with an optimizer of two slots needs on one device.

    On a CPU XLA computes bfloat16 in float32, and merges what unrolled rematerialisation computes again with what it
    was to replace: neither saves anything there. In a loop (`scan`) it saves as everywhere.
    """
    cut = layout.model_parts
    parameters = parameter_count(config)
    weights = 4 * parameters / layout.state_parts
    held = {"weights": weights, "optimizer slots": 2 * weights} | ({"average": weights} if layout.averaged else {})
    item = 2 if layout.half_precision and not layout.cpu else 4
    tokens = layout.examples * layout.length
    dense = tokens * config.hidden_size
    inner = tokens * config.intermediate_size / cut
    scores = tokens * layout.length * config.num_attention_heads / cut
    logits = layout.examples * layout.predictions * config.padded_vocab_size / cut
    table = config.padded_vocab_size * config.embedding_size

    # Bytes kept of a block for each element: LayerNorms in float32, masks in bytes, the rest as it is computed.
    hidden_dropped, scores_dropped = bool(config.hidden_dropout_prob), bool(config.attention_probs_dropout_prob)
    block = (26 + (10 if hidden_dropped else 7.5) * item) * dense
    block += 2.25 * item * inner
    block += (4 + 4 * item if scores_dropped else 4 + 1.6 * item) * scores
    blocks = len(shared_bricks(config))
    if layout.remat and (layout.scan or not layout.cpu):
        # The inputs of all blocks, as states too, and everything of the one whose gradient is taken.
        kept = 2 * blocks * item * dense + block
    elif layout.scan:
        # What one loop hands to the next is kept as it was asked for: nothing is computed again to save memory.
        block = (26 + 10 * item) * dense + 8 * item * inner + (5 + 2 * item) * scores
        kept = blocks * block
    else:
        kept = blocks * block
    if layout.scan and config.sharing == "none":
        # Weights stacked for the loop, their gradients, and these taken apart.
        kept += 3 * item * (parameters - table) / cut
    around = 10 * item * dense + 0.4 * item * (inner + scores) + 16 * logits
    # The word table has one gradient from each of its ends. Micro-batches add up beside the gradient of one.
    gradients = weights * (2 if layout.micro_batches > 1 else 1) + 4 * table / layout.state_parts
    return StepMemory(held, gradients, kept + around)


def collective_bytes(config: Config, layout: Layout) -> dict[str, float]:
    """Return the bytes of what one device takes part in sending in a step, by kind; of parts that of the whole."""
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
        # Two sums a block forward and two backward (Shoeybi et al. 2019, section 3).
        dense = item * layout.examples * layout.micro_batches * layout.length * config.hidden_size
        sent["all-reduce"] = sent.get("all-reduce", 0.0) + 4 * len(shared_bricks(config)) * dense
    return sent
