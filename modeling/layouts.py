"""How a model's variables may be cut over devices: Megatron-LM's cuts (Shoeybi et al. 2019, section 3) by name.

Rules are (expression over the variable's name, axes of the device mesh), first match first; None stays whole. In a
block the first product is cut by columns and the second by rows, so that one sum over devices closes each.
"""

from modeling.config import Config

LayoutRules = tuple[tuple[str, tuple[str | None, ...]], ...]


def transformer_rules(config: Config) -> LayoutRules:
    """Rules of every encoder and decoder here: heads, feed-forward units and vocabulary are cut over `model`."""
    if config.ffn_groups == 1:
        feed_forward: LayoutRules = (
            (r"feed_forward_\d+/intermediate/kernel$", (None, "model")),
            (r"feed_forward_\d+/intermediate/bias$", ("model",)),
            (r"feed_forward_\d+/output/kernel$", ("model", None)),
        )
    else:
        # Whole groups: a cut through a group would need sums over devices, because inputs are interleaved.
        feed_forward = ((r"feed_forward_\d+/(intermediate|output)/kernel$", (None, None, "model")),)
    return (
        (r"embeddings/word_embeddings$", ("model", None)),
        (r"masked_lm/output_bias$", ("model",)),
        (r"attention_\d+/(query|key|value)/kernel$", (None, "model")),
        (r"attention_\d+/(query|key|value)/bias$", ("model",)),
        (r"attention_\d+/output/kernel$", ("model", None)),
        *feed_forward,
        ("", ()),
    )
