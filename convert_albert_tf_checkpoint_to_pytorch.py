"""Convert a TF 1 ALBERT or BERT checkpoint to PyTorch under the flags of albert_pytorch and of transformers.

A thin front to `convert_checkpoint.py`; differs from both originals in that every tensor is accounted for, the graph is
told from the tensors, and stock transformers opens what is written.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from absl.app import UsageError

from commands.flags import flag, run
from ground.files import write_atomically


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Convert a TF 1 ALBERT or BERT checkpoint to PyTorch."""

    tf_checkpoint_path: str = flag(help="TF 1 checkpoint: prefix, .index or folder")
    bert_config_file: str = flag(help="the config published with it", aliases=("albert_config_file",))
    pytorch_dump_path: str = flag(
        help="pytorch_model.bin to write, with config.json and the vocabulary beside it; or a folder"
    )
    share_type: str | None = flag(
        None, help="what layers share; only checked, since the names tell", choices=("all", "attention", "ffn", "None")
    )
    vocab_file: str | None = flag(None, help="vocabulary, where none lies beside the checkpoint")
    model_type: str = flag("auto", help="transformers class", choices=("auto", "albert", "bert"))
    do_lower_case: bool = flag(True, help="whether the tokenizer lowers its input")


def main(options: Options) -> int:
    """Write the folder or the file and compare; 1 when transformers computes something else from it."""
    from commands.startup import import_tensorflow

    import_tensorflow()
    from conversion.loading import check_fits
    from conversion.readers import read_checkpoint
    from conversion.writers import write_transformers
    from convert_checkpoint import find_vocabulary, report
    from modeling.config import load_config

    config = load_config(options.bert_config_file)
    checkpoint = read_checkpoint(options.tf_checkpoint_path, config=config)
    check_fits(checkpoint)
    config = checkpoint.config
    assert config is not None
    asked = None if options.share_type is None else options.share_type.lower()
    if asked not in (None, config.sharing):
        raise UsageError(
            f"--share_type={options.share_type}, but the layers of {checkpoint.path} share {config.sharing!r}; "
            "leave the flag out"
        )
    vocabulary = find_vocabulary(checkpoint, options.vocab_file)
    target = Path(options.pytorch_dump_path)
    as_file = target.suffix in (".bin", ".pt", ".pth")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "converted" if as_file else target
        written = write_transformers(
            folder,
            config,
            checkpoint.tensors,
            vocabulary,
            model_type=options.model_type,
            pytorch_bin=True,
            do_lower_case=options.do_lower_case,
        )
        code = report(checkpoint, written, vocabulary, where=target)
        if as_file and code == 0:
            beside = {
                entry.name: entry.read_bytes()
                for entry in folder.iterdir()
                if entry.suffix in (".json", ".txt", ".model")
            }
            for name, content in beside.items():
                other = target.with_name(name)
                if other.exists() and other.read_bytes() != content:
                    raise UsageError(f"{other} exists and is another file; let --pytorch_dump_path name a new folder")
            for name, content in beside.items():
                write_atomically(target.with_name(name), content)
            write_atomically(target, (folder / "pytorch_model.bin").read_bytes())
    return code


if __name__ == "__main__":
    run(main, Options)
