"""Convert a checkpoint between TF 1, transformers (PyTorch) and this project, and prove the outputs equal."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs
from commands.options import SEGMENTATIONS
from ground.files import write_atomically
from ground.words import one_line

if TYPE_CHECKING:
    from conversion.readers import Checkpoint
    from conversion.tokenizer_files import VocabularyFile
    from conversion.writers import Written

_TOLERANCE = 1e-4
_TORCH_FILES = (".bin", ".pt", ".pth")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Convert a checkpoint between TF 1, transformers (PyTorch) and this project, and prove the outputs equal."""

    _data: ClassVar = Group.DATA
    input: str = flag(
        help="a run's output folder or a step_* folder, a TF 1 prefix, .index or folder, a transformers folder, "
        "a .safetensors or a .bin file, an index of several, or PLUG's folder of mp_rank_* files; an archive of one, "
        "or its http(s) address, works too",
        aliases=("init_checkpoint",),
    )
    output: str | None = flag(
        None,
        help="folder to write, which may hold nothing but a former conversion; or, for transformers, a .bin file, with "
        "config and vocabulary beside it",
        essential=True,
    )
    format: str = flag(
        "transformers",
        help="what to write; plug is a file for each process of its model parallelism",
        choices=("transformers", "tf1", "ours", "plug"),
        essential=True,
    )
    num_shards: int = flag(8, help="processes that a model in PLUG's format is cut for", minimum=1)
    _model: ClassVar = Group.MODEL
    config_file: str | None = flag(
        None, help="config of the model, where none lies beside the checkpoint", aliases=("bert_config_file",)
    )
    vocab_file: str | None = flag(
        None, help="WordPiece vocabulary or SentencePiece .model, where none lies beside the checkpoint", essential=True
    )
    spm_model_file: str | None = flag(
        None, help="SentencePiece .model; with --vocab_file the two of ERNIE-M, where they do not lie beside"
    )
    segmentation: str | None = flag(
        None,
        help="how ERNIE-M's tokenizer cuts text; by default as the files beside --input say, else hf for transformers' "
        "names and paddlenlp for others",
        choices=SEGMENTATIONS,
    )
    model_type: str = flag(
        "auto",
        help="transformers class: auto keeps shared layers shared (albert), writes bert where nothing is shared, and "
        "code of ours beside the weights (divan_*, for trust_remote_code=True) where transformers has no class",
        choices=("auto", "albert", "bart", "bert", "roberta", "xlm-roberta", "divan_encoder", "divan_palm"),
    )
    pytorch_model_bin: bool = flag(
        False, help="also write pytorch_model.bin, for tools that read no safetensors", group=Group.DATA
    )
    do_lower_case: bool | None = flag(
        None,
        help="whether the tokenizer lowers its input; by default as the files beside --input say, else True",
    )
    labels: tuple[str, ...] = flag((), help="names of a classifier's classes, in order, where the run has none")
    best: bool = flag(
        False, help="of a run's output folder, take best/ instead of the newest step", essential=True, group=Group.DATA
    )
    strip: bool = flag(
        False,
        help="take out heads and feed-forward units that pruning has made 0: a smaller, faster model of equal outputs",
        group=Group.MODEL,
    )
    list: bool = flag(False, help="only print names and shapes of --input under our names", group=Group.DATA)
    check_only: bool = flag(
        False, help="only read --input, account for every tensor and compare outputs; write nothing", group=Group.DATA
    )
    allow_missing: tuple[str, ...] = flag(
        (), help="patterns of tensors that --input may lack, under our names, such as backbone/pooler/.*"
    )
    allow_unexpected: tuple[str, ...] = flag(
        (), help="patterns of tensors that may be left out because they have no place, such as regression.*"
    )


NEEDS = (
    Need(
        ("model_type", "pytorch_model_bin", "do_lower_case"),
        "--format=transformers",
        lambda o: o.format == "transformers",
    ),
    Need(("labels",), "--format=transformers or ours", lambda o: o.format in ("transformers", "ours")),
    Need(("num_shards",), "--format=plug", lambda o: o.format == "plug"),
)


def main(options: Options) -> int:
    """Read, write, compare; return 1 when the written files compute something else."""
    if options.output is None and not (options.list or options.check_only):
        raise UsageError("missing required flag: --output (or --list or --check_only, to look only)")
    check_needs(options, NEEDS)
    checkpoint = read(options)
    if options.strip:
        checkpoint = stripped(checkpoint)
    if options.list:
        print_names(checkpoint)
        return 0
    if options.check_only:
        account(options, checkpoint)
        return not_finite(checkpoint) or prove(checkpoint, None, str(checkpoint.path))
    return convert(options, checkpoint)


def read(options: Options) -> Checkpoint:
    """Return the checkpoint that the options name."""
    from commands.startup import import_tensorflow

    import_tensorflow()
    from conversion.readers import read_checkpoint
    from modeling.config import load_config

    config = None if options.config_file is None else load_config(options.config_file)
    return read_checkpoint(options.input, config=config, prefer_best=options.best)


def stripped(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint without heads and units that are 0, and print what left; raises `UsageError`."""
    from conversion.stripping import strip, told

    if checkpoint.config is None:
        raise UsageError(
            f"--strip: {checkpoint.path} lies without a config, which says how large a head is; give --config_file"
        )
    config, tensors = strip(checkpoint.config, checkpoint.tensors)
    smaller = dataclasses.replace(checkpoint, config=config, tensors=tensors)
    print(f"stripped: {told(checkpoint, smaller)}")
    return smaller


def convert(options: Options, checkpoint: Checkpoint) -> int:
    """Write the checkpoint in the format and to the place of the options, and compare; return the exit code."""
    assert options.output is not None
    output = Path(options.output)
    check_output(options, checkpoint, output)
    account(options, checkpoint)
    if not is_file(options):
        return _write_folder(options, checkpoint, output, output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent) as temporary:
        folder = Path(temporary) / "converted"
        code = _write_folder(dataclasses.replace(options, pytorch_model_bin=True), checkpoint, folder, output)
        if code == 0:
            _place_file(folder, output)
    return code


def account(options: Options, checkpoint: Checkpoint) -> None:
    """Print what became of every tensor that was read; raise `UsageError` for one that no flag allows to be lost."""
    from conversion.loading import check_fits

    print(f"{checkpoint.path}: read as {checkpoint.source_format}")
    report = check_fits(checkpoint, options.allow_missing, options.allow_unexpected)
    for line in report.lines(checkpoint):
        print(one_line(line))
    print(f"not told by the weights: {untold(checkpoint)}")


def not_finite(checkpoint: Checkpoint) -> int:
    """Print which tensors hold numbers that are not finite; return 1 where there are any, as an exit code."""
    import numpy as np

    from ground.words import few_names

    wrong = [
        f"{name} ({count:,} of {value.size:,})"
        for name, value in sorted(checkpoint.tensors.items())
        if (count := int(np.count_nonzero(~np.isfinite(np.asarray(value)))))
    ]
    print(f"not finite: {few_names(wrong) if wrong else 'none'}")
    return int(bool(wrong))


def untold(checkpoint: Checkpoint) -> str:
    """Return the properties of the model that come from the config alone, since any of them fits the tensors."""
    config = checkpoint.config
    assert config is not None
    return f"{config.num_attention_heads} attention heads, {config.hidden_act}, {config.ln_type}"


def check_output(options: Options, checkpoint: Checkpoint, output: Path) -> None:
    """Raise `UsageError` where the conversion would write over what it reads or what no conversion wrote."""
    from conversion.writers import VERB
    from ground.outputs import Target, check_outputs, was_written

    reads = {
        "--input": [options.input, checkpoint.path, *checkpoint.folders],
        "--config_file": [options.config_file],
        "--vocab_file": [path for file in vocabulary_of(options, checkpoint) for path in file.paths],
    }
    if is_file(options):
        check_outputs(reads, [Target(output, "--output", lambda path: was_written(path, VERB))])
    else:
        # What the folder holds is looked at, file by file, when it is written.
        check_outputs(reads, [Target(output, "--output", Path.is_dir, "it is a file, not a folder", folder=True)])


def vocabulary_of(options: Options, checkpoint: Checkpoint) -> list[VocabularyFile]:
    """Return the vocabulary that the flags name, or that lies beside the checkpoint."""
    from conversion.beside import find_vocabulary

    return find_vocabulary(checkpoint, options.vocab_file, options.spm_model_file, options.segmentation)


def is_file(options: Options) -> bool:
    """Return whether --output names a file of weights, and no folder."""
    return options.format == "transformers" and Path(options.output or "").suffix in _TORCH_FILES


def _write_folder(options: Options, checkpoint: Checkpoint, folder: Path, output: Path) -> int:
    """Write `folder`, whose content the person will find at `output`, and report; return the exit code."""
    from conversion.beside import is_lowered, kind_of_run, labels_of
    from conversion.writers import PART_BYTES, write_ours, write_plug, write_tf1, write_transformers
    from modeling.computation import LANGUAGES

    config, tensors = checkpoint.config, checkpoint.tensors
    assert config is not None
    vocabulary = vocabulary_of(options, checkpoint)
    labels = options.labels or labels_of(checkpoint)
    if options.format == "transformers":
        lowered = options.do_lower_case
        if lowered is None:
            lowered = not vocabulary or is_lowered(checkpoint)
        written = write_transformers(
            folder,
            config,
            tensors,
            vocabulary,
            model_type=options.model_type,
            pytorch_bin=options.pytorch_model_bin,
            do_lower_case=lowered,
            labels=labels,
            kind=kind_of_run(checkpoint),
            allow_dropped=options.allow_unexpected,
            part_bytes=sys.maxsize if is_file(options) else PART_BYTES,
        )
    elif options.format == "tf1":
        written = write_tf1(folder, config, tensors, vocabulary, allow_dropped=options.allow_unexpected)
    elif options.format == "plug":
        written = write_plug(
            folder, config, tensors, vocabulary, count=options.num_shards, allow_dropped=options.allow_unexpected
        )
    else:
        written = write_ours(folder, config, tensors, vocabulary, labels=labels)
    print(f"written to {output} as {written.naming}")
    vectors = [name for name in written.dropped if name.startswith(f"{LANGUAGES}/")]
    if vectors:
        codes = ", ".join(name.removeprefix(f"{LANGUAGES}/") for name in vectors)
        print(f"left out: the vectors of the languages {codes} have no place in {written.naming}; --format=ours has")
    for name in written.dropped:
        if name not in vectors:
            print(f"left out, as --allow_unexpected says: {name} has no place in {written.naming}")
    if not vocabulary:
        print("no vocabulary found: pass --vocab_file to write one beside the weights")
    return prove(checkpoint, written, str(output))


def _place_file(folder: Path, target: Path) -> None:
    """Move weights to the file `target`, config and vocabulary beside it; raise `UsageError` rather than replace."""
    from conversion.writers import VERB
    from ground.outputs import RECORD, announce, was_written

    suffixes = (".json", ".txt", ".model", ".py")
    beside = [path for path in folder.iterdir() if path.suffix in suffixes and path.name != RECORD]
    new = {target.name: folder / "pytorch_model.bin"}
    for path in beside:
        other = target.with_name(path.name)
        same = other.exists() and other.read_bytes() == path.read_bytes()
        if other.exists() and not same and not was_written(other, VERB):
            raise UsageError(f"{other} exists and is another file; name a file in a new folder")
        if not same:
            new[path.name] = path
    announce(target.parent, VERB, {name: path.stat().st_size for name, path in new.items()})
    for name, path in new.items():
        shutil.move(path, target.with_name(name))


def print_names(checkpoint: Checkpoint) -> None:
    """Print every tensor, then their number and the naming."""
    for name, value in sorted(checkpoint.tensors.items()):
        print(f"{name}  {list(value.shape)}")
    total = sum(value.size for value in checkpoint.tensors.values())
    print(f"{len(checkpoint.tensors)} tensors, {total:,} parameters, read as {checkpoint.source_format}")
    for what, names in (("skipped", checkpoint.skipped), ("without a place", checkpoint.unplaced)):
        if names:
            print(one_line(f"{what}: {', '.join(names)}"))


def prove(checkpoint: Checkpoint, written: Written | None, place: str) -> int:
    """Read back what was written, run both models, print the largest differences; return the exit code.

    Args:
        checkpoint: as it was read.
        written: as it was written, perhaps in a temporary folder; None where nothing is to be written.
        place: where the person finds all.
    """
    from conversion.proof import all_equal, compare_outputs, read_back
    from conversion.writers import VERB
    from ground.outputs import announce

    differences = {} if written is None else read_back(written)
    compared, what = compare_outputs(checkpoint, written)
    differences |= compared
    print(f"largest difference from {what}, on random input with padding:" if compared else what)
    for name, value in differences.items():
        print(f"  {name:22} {value:.1e}")
    if written is not None:
        content = json.dumps(differences, indent=2) + "\n"
        announce(written.directory, VERB, {"parity.json": len(content)})
        write_atomically(written.directory / "parity.json", content)
    if not all_equal(differences, _TOLERANCE):
        print(f"NOT EQUAL: a difference is above {_TOLERANCE:g}; do not use {place}")
        return 1
    return 0


if __name__ == "__main__":
    run(main, Options)
