"""What the flags of a verb ask for, in bytes, before anything of that size is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from ground.memory import check_disk, check_memory

if TYPE_CHECKING:
    from data.recipe import Recipe
    from modeling.config import Config

_FLOAT_BYTES = 4
_WORKER_BYTES = 32 * 2**20  # a forked worker with the arrays of one small piece
_TOKEN_BYTES = 12  # of text: no language has longer tokens on average, so that estimates stay lower bounds
_LABEL_BYTES = 20  # int64 positions and ids and a float32 weight


def check_model(config: Config, config_file: str) -> None:
    """Raise `UsageError` where weights, gradients and two moments are more than this machine's memory."""
    parameters = config.least_parameters
    check_memory(
        parameters * _FLOAT_BYTES * 4,
        f"{config_file}: weights, gradients and optimizer state of {parameters:,} parameters",
        "use a smaller config",
    )


def check_batch(
    config: Config, flag: str, rows: int, length: int, scored: int, parts: int = 1, rows_per_example: int = 1
) -> None:
    """Raise `UsageError` where the widest arrays of a forward pass are more than this machine's memory.

    Args:
        config: of the model.
        flag: the name of the flag that says `rows`.
        rows: examples of a batch.
        length: tokens of an example.
        scored: positions of an example that are scored over the vocabulary.
        parts: micro-batches that the batch is computed in.
        rows_per_example: rows of so many tokens that are computed for an example.
    """
    given, rows = rows, rows * rows_per_example
    inner = rows / parts * (length * (config.intermediate_size + 2 * config.hidden_size) + scored * config.vocab_size)
    arrays = 3 * rows * length
    check_memory(
        _FLOAT_BYTES * (inner + arrays),
        f"--{flag}={given}: the arrays of one layer for {rows:,} examples of {length:,} tokens"
        if rows_per_example == 1
        else f"--{flag}={given}: the arrays of one layer for {rows_per_example} rows of {length:,} tokens an example",
        f"lower --{flag}, or --max_seq_length",
    )


def check_records(options: Any, recipe: Recipe, inputs: Sequence[Path], output: Path, num_cores: int) -> None:
    """Raise `UsageError` for records, workers or files that this machine cannot hold."""
    from data.manifest import stamp
    from data.writing.pieces import PIECE_TOKENS

    num_bytes = sum(stamp(path)[0] for path in inputs)
    tokens = num_bytes * recipe.dupe_factor / _TOKEN_BYTES
    examples = tokens / recipe.width
    slots = sum(recipe.lengths.get(axis, 0) for axis in ("predictions", "shuffled"))
    workers = options.num_workers or num_cores
    check_memory(
        workers * _WORKER_BYTES if options.num_workers else 0,
        f"--num_workers={workers}: as many processes",
        f"leave it out, for one on each of the {num_cores} cores",
    )
    # Labels of a piece, of which every worker makes one at a time.
    rows = min(PIECE_TOKENS / recipe.width, examples)
    check_memory(
        min(workers, examples / max(rows, 1)) * rows * slots * _LABEL_BYTES,
        f"--max_predictions_per_seq={options.max_predictions_per_seq}: the labels that are made at once",
        "lower it to the predictions that an example can have",
    )
    check_disk(
        examples * (4 * recipe.width + (0 if recipe.dynamic else 6 * slots)),
        output.parent,
        f"--dupe_factor={recipe.dupe_factor}: records of {num_bytes:,} bytes of text",
        "lower --dupe_factor, or write --masking=dynamic with --dupe_factor=1",
    )
    if num_bytes and (options.num_shards or 0) > num_bytes:
        raise UsageError(
            f"--num_shards={options.num_shards}: more files than the {num_bytes:,} bytes of text have examples; "
            "lower it, or give --shard_size"
        )
