"""ALBERT (Lan et al. 2020): which layers share which weights.

Google's code computes a layer's group in floating point and is off for some depths; integers are used here.
"""

from modeling.config import Config


def shared_bricks(config: Config) -> list[tuple[int, int]]:
    """Return (k of the attention, k of the feed-forward) of every block in order of execution.

    Shared bricks are numbered group * inner_group_num + inner block, others layer * inner_group_num + inner block;
    groups that no layer falls into leave a gap. `sharing` "all" ties both, "attention" and "ffn" one of the two.
    """
    bricks = []
    for layer in range(config.num_hidden_layers):
        group = layer * config.num_hidden_groups // config.num_hidden_layers
        for inner in range(config.inner_group_num):
            shared = group * config.inner_group_num + inner
            own = layer * config.inner_group_num + inner
            bricks.append(
                (
                    shared if config.sharing in ("all", "attention") else own,
                    shared if config.sharing in ("all", "ffn") else own,
                )
            )
    return bricks
