"""Augment a task's training file: copies of its texts in which a masked-LM model writes some words anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs
from commands.options import SEGMENTATIONS, TrainingOptions

if TYPE_CHECKING:
    import numpy as np

    from data.tokenizers import Tokenizer
    from modeling.config import Config
    from tasks.augmentation import Fill
    from tasks.datasets import DatasetRow

VERB = "augment_examples"
_UNUSED = ("sentence_pair/.*", "classifier/.*", "tagger/.*", "span/.*", "backbone/decoder/.*", "copy/.*")
_UNUSED_TOO = ("backbone/target_embeddings/.*", "backbone/encoder/cross_attention_.*", "pooled_layer_norm/.*")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a task's files anew, the training file with copies of its examples in which words were exchanged."""

    _data: ClassVar = Group.DATA
    task_name: str = flag(help="a row of tasks/datasets.toml: classes, scores or labels of texts and pairs")
    data_dir: str = flag(help="folder of the task's files")
    output_dir: str = flag(help="folder for the files to train on; the others are copied, so that it is a --data_dir")
    task_file: str | None = flag(None, help="TOML file of task rows of your own, in the form of tasks/datasets.toml")
    encoding: str | None = flag(None, help="of the files, as Python names it; by default the row's, or utf-8")
    _model: ClassVar = Group.MODEL
    init_checkpoint: str = flag(
        help="the masked-LM model: a folder of ours, a TensorFlow 1 prefix, or a transformers folder",
        aliases=("model_name_or_path",),
    )
    bert_config_file: str = flag("", help="JSON file of the model's shape; by default the one beside --init_checkpoint")
    vocab_file: str | None = flag(
        None, help="WordPiece vocabulary; by default the tokenizer beside --init_checkpoint", essential=True
    )
    spm_model_file: str | None = flag(None, help="SentencePiece model, in place of --vocab_file; of ERNIE-M beside it")
    segmentation: str | None = flag(None, help="how ERNIE-M's tokenizer cuts text", choices=SEGMENTATIONS)
    do_lower_case: bool = flag(True, help="lower the case and strip accents, as the vocabulary was made")
    _examples: ClassVar = Group.EXAMPLES
    num_copies: int = flag(4, help="copies of every example, beside itself", minimum=1, essential=True)
    mask_share: float = flag(
        0.15, help="share of the words of an example that are written anew, one at least", minimum=0, essential=True
    )
    pick: str = flag(
        "sample",
        help="draws each word from the best by its probability, or takes the best",
        choices=("sample", "best"),
        essential=True,
    )
    top_k: int = flag(10, help="words that are drawn from", unit="words", minimum=1)
    seed: int = flag(12345, help="decides which words, and the draws", minimum=0)
    max_seq_length: int = flag(128, help="text behind stays as it is", unit="tokens", minimum=4)
    predict_batch_size: int = flag(32, help="copies that are computed at once", unit="examples", minimum=1)
    _devices: ClassVar = Group.DEVICES
    backend: str = flag(
        "auto",
        help="what computes; auto is KERAS_BACKEND or tensorflow, and jax where there is no TensorFlow",
        choices=("auto", "tensorflow", "jax"),
    )
    precision: str = flag("float32", help="compute precision", choices=("float32", "bfloat16"))


NEEDS = (Need(("top_k",), "--pick=sample", lambda o: o.pick == "sample"),)


def main(options: Options) -> None:
    """Write the files and say what was made. Raises `UsageError` for files or a model that do not do."""
    check_needs(options, NEEDS)
    from commands.devices import Devices
    from commands.model_folder import with_folder
    from data.token_cache import told
    from data.tokenizers import load_tokenizer
    from tasks.augmented_files import labelled_rows, with_copies

    row, files = task_of(options)
    check_folder(options, files)
    devices = Devices(as_training(options))
    options, config = with_folder(options)
    rows = {path: labelled_rows(row, path) for path in files["train"]}
    tokenizer = load_tokenizer(
        vocab_file=options.vocab_file,
        spm_model_file=options.spm_model_file,
        do_lower_case=options.do_lower_case,
        segmentation=options.segmentation,
    )
    devices.start()
    fill, weights = filler(options, devices, config, tokenizer)
    print(f"weights  {weights}")
    if found := told():
        print(found)

    from tasks.augmentation import Recipe, augmented

    recipe = Recipe(options.num_copies, options.mask_share, options.pick, options.top_k, options.seed)
    contents = {}
    for path, examples in rows.items():
        made = augmented(
            [each.texts for each in examples],
            tokenizer,
            recipe,
            fill,
            max_seq_length=options.max_seq_length,
            batch_size=options.predict_batch_size,
        )
        contents[path] = with_copies(row, path, examples, made.copies)
        count = sum(map(len, made.copies))
        lacking = f"; {made.lacking:,} more would have been equal to others" if made.lacking else ""
        print(f"{path}: {len(examples):,} examples, {count:,} copies with {made.words:,} new words{lacking}")
    write(options, files, contents)
    print(f"{options.output_dir} is ready: run_classifier.py --task_name={row.name} --data_dir={options.output_dir}")


def task_of(options: Options) -> tuple[DatasetRow, dict[str, tuple[Path, ...]]]:
    """Return the row and its files by split, every example of which can be read; raises `UsageError`."""
    import contextlib
    import dataclasses

    from data.corpus.encodings import find_encoding
    from tasks.augmented_files import check_row
    from tasks.datasets import find_row, find_split
    from tasks.kinds import find_kind

    row = find_row(options.task_name, Path(options.task_file) if options.task_file else None)
    row = dataclasses.replace(row, encoding=find_encoding(options.encoding or row.encoding))
    check_row(row)
    files = {"train": find_split(row, Path(options.data_dir), "train")}
    for split in row.files:
        with contextlib.suppress(UsageError):  # a folder without a test file is one to train with
            files[split] = find_split(row, Path(options.data_dir), split)
    if not row.find_labels:
        for path in files["train"]:
            find_kind(row.kind).read(row, path, need_labels=True)
    return row, files


def check_folder(options: Options, files: Mapping[str, Sequence[Path]]) -> None:
    """Raise `UsageError` where a file would be written over that was not written by this verb, or that is read."""
    from ground.outputs import Target, check_outputs, was_written

    reads = {
        "--data_dir": [path for paths in files.values() for path in paths],
        "--init_checkpoint": [options.init_checkpoint],
        "--vocab_file": [options.vocab_file],
        "--spm_model_file": [options.spm_model_file],
        "--bert_config_file": [options.bert_config_file or None],
        "--task_file": [options.task_file],
    }
    targets = [
        Target(target_of(options, path), "--output_dir", lambda path: was_written(path, VERB))
        for path in reads["--data_dir"]
    ]
    check_outputs(reads, targets)


def target_of(options: Options, path: Path) -> Path:
    """Return where a file of --data_dir is written."""
    return Path(options.output_dir) / path.relative_to(options.data_dir)


def as_training(options: Options) -> TrainingOptions:
    """Return the flags by which devices and engines are chosen."""
    return TrainingOptions(
        output_dir=options.output_dir, backend=options.backend, precision=options.precision, seed=options.seed
    )


def filler(options: Any, devices: Any, config: Config | None, tokenizer: Tokenizer) -> tuple[Fill, str]:
    """Return the model as a function of batches, and what became of its weights; raises `UsageError`."""
    from commands.sizes import check_model
    from commands.weights import initialize
    from modeling import load_config
    from modeling.computation import DTYPES, Computation
    from tasks.augmentation import allowed_ids
    from tasks.filling import FillingTask

    path = options.bert_config_file or options.init_checkpoint
    config = config or load_config(options.bert_config_file)
    check_model(config, path)
    if config.vocab_size != tokenizer.vocab_size:
        raise UsageError(
            f"the vocabulary has {tokenizer.vocab_size:,} tokens but {path} has vocab_size={config.vocab_size:,}: give "
            "the vocabulary that belongs to the model"
        )
    if options.max_seq_length > config.max_sequence_length:
        raise UsageError(
            f"--max_seq_length={options.max_seq_length}: {path} has positions for {config.max_sequence_length} tokens"
        )
    most = min(options.top_k if options.pick == "sample" else 1, tokenizer.vocab_size)
    computation = Computation(dtype=DTYPES[options.precision], seed=options.seed)
    task = FillingTask(config, allowed_ids(tokenizer, tokenizer.vocab_size), most, computation)
    engine = devices.predictor(task, as_training(options), options.predict_batch_size)
    told = initialize(engine.model, config, options.init_checkpoint, allow_unexpected=(*_UNUSED, *_UNUSED_TOO))

    def fill(batches: Iterator[Mapping[str, np.ndarray]]) -> Iterator[Mapping[str, np.ndarray]]:
        return engine.predict(batches)

    return fill, told


def write(options: Options, files: Mapping[str, Sequence[Path]], contents: Mapping[Path, bytes]) -> None:
    """Write the training files and copy the others; raises `OSError`."""
    from ground.files import write_atomically
    from ground.outputs import announce, note_written

    for path in dict.fromkeys(path for paths in files.values() for path in paths):
        target = target_of(options, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = contents[path] if path in contents else path.read_bytes()
        announce(target.parent, VERB, {target.name: len(content)})
        write_atomically(target, content)
        note_written(target.parent, VERB, [target.name])


if __name__ == "__main__":
    run(main, Options)
