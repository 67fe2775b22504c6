"""Convert a TF 1 ALBERT or BERT checkpoint to PyTorch under the flags of albert_pytorch and of transformers.

`convert_checkpoint.py` does the work; differs from both originals in that every tensor is accounted for, the tensors
tell the graph, and stock transformers opens the result.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from absl.app import UsageError

import convert_checkpoint
from commands.flags import Group, flag, run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Convert a TF 1 ALBERT or BERT checkpoint to PyTorch."""

    _data: ClassVar = Group.DATA
    tf_checkpoint_path: str = flag(help="TF 1 checkpoint: prefix, .index or folder")
    bert_config_file: str = flag(help="the config published with it", aliases=("albert_config_file",))
    pytorch_dump_path: str = flag(
        help="pytorch_model.bin to write, with config.json and the vocabulary beside it; or a folder"
    )
    _model: ClassVar = Group.MODEL
    share_type: str | None = flag(
        None, help="what layers share; only checked, since the names tell", choices=("all", "attention", "ffn", "None")
    )
    vocab_file: str | None = flag(None, help="vocabulary, where none lies beside the checkpoint", essential=True)
    model_type: str = flag("auto", help="transformers class", choices=("auto", "albert", "bert"))
    do_lower_case: bool | None = flag(
        None,
        help="whether the tokenizer lowers its input; by default as the files there say, else True",
    )


def main(options: Options) -> int:
    """Write the folder or the file and compare; return 1 when transformers computes something else from it."""
    wanted = convert_checkpoint.Options(
        input=options.tf_checkpoint_path,
        output=options.pytorch_dump_path,
        config_file=options.bert_config_file,
        vocab_file=options.vocab_file,
        model_type=options.model_type,
        pytorch_model_bin=True,
        do_lower_case=options.do_lower_case,
    )
    checkpoint = convert_checkpoint.read(wanted)
    sharing = checkpoint.config.sharing if checkpoint.config else ""
    if options.share_type is not None and options.share_type.lower() != sharing:
        raise UsageError(
            f"--share_type={options.share_type}, but the layers of {checkpoint.path} share {sharing!r}; "
            "leave the flag out"
        )
    return convert_checkpoint.convert(wanted, checkpoint)


if __name__ == "__main__":
    run(main, Options)
