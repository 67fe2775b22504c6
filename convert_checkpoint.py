"""Convert a checkpoint between TF 1, transformers (PyTorch) and this project, and prove the outputs equal."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs
from ground.files import write_atomically

if TYPE_CHECKING:
    from conversion.readers import Checkpoint
    from conversion.writers import Written

_TOLERANCE = 1e-4
_TORCH_FILES = (".bin", ".pt", ".pth")
_VOCABULARIES = ("vocab.txt", "spiece.model", "30k-clean.model", "sentencepiece.bpe.model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Convert a checkpoint between TF 1, transformers (PyTorch) and this project, and prove the outputs equal."""

    _data: ClassVar = Group.DATA
    input: str = flag(
        help="a run's output folder or a step_* folder, a TF 1 prefix, .index or folder, a transformers folder, "
        "a .safetensors or a .bin file; an archive of one, or its http(s) address, works too",
        aliases=("init_checkpoint",),
    )
    output: str | None = flag(
        None,
        help="folder to write, which may hold nothing but a former conversion; or, for transformers, a .bin file, with "
        "config and vocabulary beside it",
        essential=True,
    )
    format: str = flag("transformers", help="what to write", choices=("transformers", "tf1", "ours"), essential=True)
    _model: ClassVar = Group.MODEL
    config_file: str | None = flag(
        None, help="config of the model, where none lies beside the checkpoint", aliases=("bert_config_file",)
    )
    vocab_file: str | None = flag(
        None, help="WordPiece vocabulary or SentencePiece .model, where none lies beside the checkpoint", essential=True
    )
    model_type: str = flag(
        "auto",
        help="transformers class: auto keeps shared layers shared (albert) and writes bert where nothing is shared",
        choices=("auto", "albert", "bert", "roberta"),
    )
    pytorch_model_bin: bool = flag(
        False, help="also write pytorch_model.bin, for tools that read no safetensors", group=Group.DATA
    )
    do_lower_case: bool = flag(True, help="whether the tokenizer lowers its input")
    labels: tuple[str, ...] = flag((), help="names of a classifier's classes, in order, where the run has none")
    best: bool = flag(
        False, help="of a run's output folder, take best/ instead of the newest step", essential=True, group=Group.DATA
    )
    list: bool = flag(False, help="only print names and shapes of --input under our names", group=Group.DATA)


NEEDS = (
    Need(
        ("model_type", "pytorch_model_bin", "labels", "do_lower_case"),
        "--format=transformers",
        lambda o: o.format == "transformers",
    ),
)


def main(options: Options) -> int:
    """Read, write, compare; return 1 when the written files compute something else."""
    if options.output is None and not options.list:
        raise UsageError("missing required flag: --output (or --list, to look only)")
    check_needs(options, NEEDS)
    checkpoint = read(options)
    if options.list:
        print_names(checkpoint)
        return 0
    return convert(options, checkpoint)


def read(options: Options) -> Checkpoint:
    """Return the checkpoint that the options name."""
    from commands.startup import import_tensorflow

    import_tensorflow()
    from conversion.readers import read_checkpoint
    from modeling.config import load_config

    config = None if options.config_file is None else load_config(options.config_file)
    return read_checkpoint(options.input, config=config, prefer_best=options.best)


def convert(options: Options, checkpoint: Checkpoint) -> int:
    """Write the checkpoint in the format and to the place of the options, and compare; return the exit code."""
    from conversion.loading import check_fits

    assert options.output is not None
    check_fits(checkpoint)
    output = Path(options.output)
    check_output(options, checkpoint, output)
    if not is_file(options):
        return _write_folder(options, checkpoint, output, output)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "converted"
        code = _write_folder(dataclasses.replace(options, pytorch_model_bin=True), checkpoint, folder, output)
        if code == 0:
            _place_file(folder, output)
    return code


def check_output(options: Options, checkpoint: Checkpoint, output: Path) -> None:
    """Raise `UsageError` where the conversion would write over what it reads or what no conversion wrote."""
    from conversion.writers import VERB
    from ground.outputs import Target, check_outputs, was_written

    reads = {
        "--input": [options.input, checkpoint.path, *checkpoint.folders],
        "--config_file": [options.config_file],
        "--vocab_file": find_vocabulary(checkpoint, options.vocab_file),
    }
    if is_file(options):
        check_outputs(reads, [Target(output, "--output", lambda path: was_written(path, VERB))])
    else:
        # What the folder holds is looked at, file by file, when it is written.
        check_outputs(reads, [Target(output, "--output", Path.is_dir, "it is a file, not a folder", folder=True)])


def is_file(options: Options) -> bool:
    """Return whether --output names a file of weights, and no folder."""
    return options.format == "transformers" and Path(options.output or "").suffix in _TORCH_FILES


def _write_folder(options: Options, checkpoint: Checkpoint, folder: Path, output: Path) -> int:
    """Write `folder`, whose content the person will find at `output`, and report; return the exit code."""
    from conversion.readers import labels_of_run
    from conversion.writers import write_ours, write_tf1, write_transformers

    config, tensors = checkpoint.config, checkpoint.tensors
    assert config is not None
    vocabulary = find_vocabulary(checkpoint, options.vocab_file)
    if options.format == "transformers":
        written = write_transformers(
            folder,
            config,
            tensors,
            vocabulary,
            model_type=options.model_type,
            pytorch_bin=options.pytorch_model_bin,
            do_lower_case=options.do_lower_case,
            labels=options.labels or labels_of_run(checkpoint),
        )
    else:
        written = {"tf1": write_tf1, "ours": write_ours}[options.format](folder, config, tensors, vocabulary)
    return report(checkpoint, written, vocabulary, output)


def _place_file(folder: Path, target: Path) -> None:
    """Copy weights to the file `target`, config and vocabulary beside it; raise `UsageError` rather than replace."""
    from conversion.writers import VERB
    from ground.outputs import RECORD, announce, was_written

    suffixes = (".json", ".txt", ".model")
    beside = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in suffixes and path.name != RECORD
    }
    new = {}
    for name, content in beside.items():
        other = target.with_name(name)
        same = other.exists() and other.read_bytes() == content
        if other.exists() and not same and not was_written(other, VERB):
            raise UsageError(f"{other} exists and is another file; name a file in a new folder")
        if not same:
            new[name] = content
    new[target.name] = (folder / "pytorch_model.bin").read_bytes()
    announce(target.parent, VERB, {name: len(content) for name, content in new.items()})
    for name, content in new.items():
        write_atomically(target.with_name(name), content)


def find_vocabulary(checkpoint: Checkpoint, given: str | None) -> list[Path]:
    """Return the vocabulary to copy: the given one, else the first beside the checkpoint or in the run's folder."""
    if given is not None:
        return [Path(given)]
    found = [folder / name for folder in checkpoint.folders for name in _VOCABULARIES if (folder / name).exists()]
    return found[:1]


def print_names(checkpoint: Checkpoint) -> None:
    """Print every tensor, then their number and the naming."""
    for name, value in sorted(checkpoint.tensors.items()):
        print(f"{name}  {list(value.shape)}")
    total = sum(value.size for value in checkpoint.tensors.values())
    print(f"{len(checkpoint.tensors)} tensors, {total:,} parameters, read as {checkpoint.source_format}")
    if checkpoint.unused:
        print(f"not read: {', '.join(checkpoint.unused)}")


def report(checkpoint: Checkpoint, written: Written, vocabulary: list[Path], output: Path) -> int:
    """Print the tensors written and left out and the largest differences; return the exit code.

    Args:
        checkpoint: as it was read.
        written: as it was written, perhaps in a temporary folder.
        vocabulary: its files.
        output: the place where the person will find all.
    """
    import numpy as np

    from conversion.readers import few_names, read_checkpoint
    from conversion.writers import VERB
    from ground.outputs import announce

    print(f"{checkpoint.path} ({checkpoint.source_format}) -> {output} ({written.naming})")
    if checkpoint.unused:
        print(f"not read: {few_names(checkpoint.unused)}")
    for name in written.dropped:
        print(f"dropped: {name} has no place in {written.naming}")
    if not vocabulary:
        print("no vocabulary found: pass --vocab_file to write one beside the weights")
    comparable = all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))
    if written.naming.startswith("transformers") and comparable:
        from conversion.parity import largest_differences

        differences = largest_differences(checkpoint, written.directory)
        print("largest difference from transformers on random input with padding:")
    else:
        if written.naming.startswith("transformers"):
            print("outputs not compared: that needs torch and transformers (pip install torch transformers)")
        again = read_checkpoint(written.directory, config=written.config).tensors
        differences = {"tensors read back": float(again.keys() != written.tensors.keys())}
        for name, value in written.tensors.items():
            if name in again and again[name].shape == value.shape:
                gap = float(np.max(np.abs(again[name] - value), initial=0.0))
                differences["tensors read back"] = max(differences["tensors read back"], gap)
            else:
                differences[name] = float("inf")
    for name, value in differences.items():
        print(f"  {name:22} {value:.1e}")
    if written.directory.is_dir():
        content = json.dumps(differences, indent=2) + "\n"
        announce(written.directory, VERB, {"parity.json": len(content)})
        write_atomically(written.directory / "parity.json", content)
    # A comparison that is not at most the tolerance includes NaN.
    if not all(value <= _TOLERANCE for value in differences.values()):
        print(f"NOT EQUAL: a difference is above {_TOLERANCE:g}; do not use {output}")
        return 1
    return 0


if __name__ == "__main__":
    run(main, Options)
