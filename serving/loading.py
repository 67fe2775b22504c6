"""Any trained model, opened and asked: `load` finds out what lies at a path or an address, `Loaded` answers.

    model = serving.load("my_lcqmc_model")
    model.predict(("天气怎么样", "今天天气好吗"))    # {"prediction": "1", "confidence": 0.98, ...}
    model.embed(["天气怎么样"])                      # float32 [1, D]

What lies there: a run folder of any training verb, its `best/` or a step, a conversion, a folder of transformers or of
PaddleNLP, a TF 1 prefix, a file of weights, an archive of one of them or its address. What is asked of a model is its
kind's (`tasks/kinds/`); a pretrained model without a task fills masks and embeds (`tasks/pretrained.py`).
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from conversion.beside import VOCABULARIES, find_vocabulary, is_lowered, labels_of
from conversion.class_order import in_order_of
from conversion.loading import load_into, model_for
from conversion.locating import locate
from conversion.readers import Checkpoint, read_checkpoint
from ground.words import did_you_mean
from serving.exporting import settings_in
from serving.programs import Programs
from tasks import pretrained
from tasks.kinds import KINDS, HeadOptions, find_kind, in_order, settings_of
from tasks.run_file import NAME, RunFile

if TYPE_CHECKING:
    import keras

    from data.tokenizers import Tokenizer
    from modeling.config import Config
    from tasks.datasets import DatasetRow

BATCH_SIZE = 32
LENGTHS = (16, 32, 64, 128, 256, 384, 512)
"""What batches are padded to, beside the model's greatest length: each is a program for every number of rows."""
FREE_STEP = 4
"""What lengths are a multiple of where nothing is compiled for a length."""
MAX_SEQ_LENGTH = 512
"""Tokens to which input is cut where no run says how many, specials counted."""
PRETRAINED = "pretrained"
_GIVE_VOCABULARY = "give vocab_file, the vocabulary or SentencePiece model that it was trained with"


class NoVocabularyError(UsageError):
    """Weights without the vocabulary that they were trained with.

    Attributes:
        what: is missing where.
        names: that its file may have.
    """

    names = " or ".join(VOCABULARIES[:2])

    def __init__(self, what: str):
        super().__init__(f"{what}: {_GIVE_VOCABULARY}")
        self.what = what


@dataclasses.dataclass
class Loaded:
    """A trained model with all that it takes to ask it.

    Attributes:
        kind: a key of `tasks.kinds.KINDS`, or "pretrained".
        labels: names of the classes in the order of the outputs; types of entities for a tagger; empty for none.
        tokenizer: of the texts.
        model: the Keras model, called on features.
        config: of the model.
        row: what its run knew of the task; None for a pretrained model.
        max_seq_length: tokens to which input is cut, specials counted.
        checkpoint: what the weights were read from; None of an export.
        task: the device half of the kind, whose `predictions` the model is asked.
        host: its host half, the module.
        settings: what decides answers beside the weights.
        programs: what predicts batches of features: the compiled model, or an export in its place.
        form: "run" for a model of Keras, else the `--format` of its export.
        precision: of its numbers, a Keras policy or "int8".
    """

    kind: str
    labels: tuple[str, ...]
    tokenizer: Tokenizer
    model: keras.Model
    config: Config
    row: DatasetRow | None
    max_seq_length: int
    checkpoint: Checkpoint | None
    task: Any
    host: Any
    settings: dict[str, Any]
    programs: Any = None
    form: str = "run"
    precision: str = "float32"

    def __post_init__(self) -> None:
        self._reading = self.programs
        if self.programs is None:
            self.programs = Programs(self.task.predictions, self.model)
            self._reading = Programs(pretrained.Reader().predictions, self.model)
        self._predictors: dict[int, Callable[[Any], list[Any]]] = {}

    @property
    def fills_masks(self) -> bool:
        """Whether it is a pretrained model that scores tokens for masks."""
        if self.form != "run":
            return getattr(self.programs, "fills", False)
        return self.kind == PRETRAINED and any("/masked_lm/" in f"/{each.path}" for each in self.model.variables)

    def predict(self, inputs: Any, batch_size: int = BATCH_SIZE) -> Any:
        """Return a dictionary that JSON can hold for each input, in their order; for one input the dictionary alone.

        One input is a text, a tuple of texts such as a pair, or a dictionary where a kind reads more, as {"question",
        "context"} or {"context", "question", "choices"}; a list is of several. Inputs are sorted by length, since the
        longest of a batch decides what it is padded to, out of few lengths.

        Args:
            inputs: one of them, or a list.
            batch_size: texts of full length side by side; of short ones there are more.

        Raises:
            UsageError: an input is none of the kind's; the message has its number where there are several.
        """
        if not isinstance(inputs, list):
            return self.answers([self.example(inputs)], batch_size)[0]
        examples = []
        for number, given in enumerate(inputs):
            try:
                examples.append(self.example(given))
            except UsageError as error:
                raise UsageError(f"input {number}: {error}") from None
        return self.answers(examples, batch_size)

    def example(self, given: Any) -> Any:
        """Return one input as an example of the kind; raises `UsageError`."""
        return self.host.example_of(self.row, given)

    def answers(self, examples: Sequence[Any], batch_size: int = BATCH_SIZE) -> list[dict[str, Any]]:
        """Return the answer to each example that `example` made, as a dictionary that JSON can hold."""
        if (told := getattr(self.programs, "told", None)) is not None:
            self._dataset(self.host, self.row, examples, batch_size, self.settings)  # refuses what no row can hold
            parts = [examples[at : at + batch_size] for at in range(0, len(examples), batch_size)]
            return [answer for part in parts for answer in told.answers(self.predictions(self.strings(part)), part)]
        found = self._found(examples, batch_size)
        return [self.host.told(self.row, answer, each) for answer, each in zip(found, examples, strict=True)]

    def score(self, examples: Sequence[Any], batch_size: int = BATCH_SIZE) -> float:
        """Return the score of the answers to labelled examples by the metric of the task."""
        assert self.row is not None
        return self.host.scores(self.row, self._found(examples, batch_size), examples)[self.row.metric]

    def _found(self, examples: Sequence[Any], batch_size: int) -> list[Any]:
        """Return the kind's own answers to examples."""
        if not examples:
            return []
        if getattr(self.programs, "told", None) is not None:
            raise UsageError("an export on strings that answers by itself has no scores: open the run, or one on ids")
        rows = _rows(len(examples), batch_size)
        dataset = self._dataset(self.host, self.row, examples, rows, self.settings)
        if generate := self.generates(batch_size):
            predictions = generate(dataset)
        elif getattr(self.programs, "texts", ()):
            batches = (self.strings(examples[at : at + rows]) for at in range(0, len(examples), rows))
            found = self.programs.predict(batches)
            predictions = [
                dict(zip(each, row, strict=True)) for each in found for row in zip(*each.values(), strict=True)
            ]
        else:
            predictions = _predicted(self.programs, dataset, rows)
        return self.host.answers(self.row, predictions, examples, **self.settings)

    def batches(self, examples: Sequence[Any], rows: int) -> list[dict[str, np.ndarray]]:
        """Return the features of examples in batches of `rows` examples of full length, short ones first."""
        dataset = self._dataset(self.host, self.row, examples, rows, self.settings)
        return list(dataset.evaluation_batches(rows))

    def strings(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return examples as the inputs of an export on strings, objects by name; "" for a text that one has not."""
        if (told := self.programs.told) is not None:
            return {name: column.astype(object) for name, column in told.given(examples).items()}
        texts = {
            name: [each if isinstance(each, str) else getattr(each, name) or "" for each in examples]
            for name in self.programs.texts
        }
        return {name: np.array(column, object) for name, column in texts.items()}

    def predictions(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what the task says of one batch of features, by the names of an export's outputs."""
        return next(self.programs.predict([batch]))

    @property
    def free(self) -> bool:
        """Whether one program takes every shape; a run that generates compiles its search for each."""
        compiles = self.form == "run" and hasattr(self.host, "predictor")
        return getattr(self.programs, "free", False) and not compiles

    @property
    def lengths(self) -> tuple[int, ...]:
        """What batches are padded to; where shapes are free, more of them."""
        if not self.free:
            return self.few_lengths
        return (*range(FREE_STEP, self.max_seq_length, FREE_STEP), self.max_seq_length)

    @property
    def few_lengths(self) -> tuple[int, ...]:
        """What batches are padded to where each length is a program, and which lengths are tried to begin with."""
        return (*(length for length in LENGTHS if length < self.max_seq_length), self.max_seq_length)

    def dataset(self, example: Any, max_seq_length: int | None = None) -> Any:
        """Return the encoded rows of one example, cut to fewer tokens than the model reads where that is given."""
        return self._dataset(self.host, self.row, [example], 1, self.settings, max_seq_length)

    def generates(
        self, batch_size: int = BATCH_SIZE, search: tuple[tuple[str, Any], ...] = ()
    ) -> Callable[..., list[Any]] | None:
        """Return what predicts the sources of a data set by a search; None where one pass of the model does.

        `search` has settings in the place of the model's own; what was made for such a search is not kept.
        """
        make = getattr(self.host, "predictor", None)
        if make is None or (not search and batch_size in self._predictors):
            return self._predictors.get(batch_size)
        settings = {**self.settings, **dict(search)}
        made = make(self.model, self.tokenizer, max_seq_length=self.max_seq_length, batch_size=batch_size, **settings)
        if not search:
            self._predictors[batch_size] = made
        return made

    def embed(self, texts: Sequence[str], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """Return the mean of the last states of each text's tokens, scaled to length 1, float32 [N, D].

        A model of the kind "matching" was trained for vectors, which `predict` gives of single texts.

        Raises:
            UsageError: something is no text, or it is an export of a model with a task.
        """
        if self.form != "run" and self.kind != PRETRAINED:
            raise UsageError(f"an export of the kind {self.kind} answers its task alone: load the run for vectors")
        examples = [pretrained.example_of(None, text) for text in texts]
        if not examples:
            return np.zeros((0, self.config.hidden_size), np.float32)
        rows = _rows(len(examples), batch_size)
        if getattr(self.programs, "texts", ()):
            parts = [self.strings(examples[at : at + rows]) for at in range(0, len(examples), rows)]
            return np.concatenate([self.predictions(part)["embedding"] for part in parts])
        dataset = self._dataset(pretrained, None, examples, rows, {})
        return np.stack([each["embedding"] for each in _predicted(self._reading, dataset, rows)])

    def _dataset(
        self,
        host: Any,
        row: DatasetRow | None,
        examples: Sequence[Any],
        rows: int,
        settings: Any,
        max_seq_length: int | None = None,
    ) -> Any:
        dataset = host.dataset(
            row,
            examples,
            self.tokenizer,
            max_seq_length=max_seq_length or self.max_seq_length,
            batch_size=rows,
            seed=0,
            **{name: value for name, value in settings.items() if name in getattr(host, "flags", ())},
        )
        dataset.lengths = self.lengths
        return dataset


def _rows(count: int, batch_size: int) -> int:
    """Return the rows of a batch: no more than there are examples, up to the next power of two."""
    return min(batch_size, 1 << (count - 1).bit_length())


def _predicted(programs: Programs, dataset: Any, rows: int) -> list[Any]:
    found = in_order(dataset, programs.predict(dataset.evaluation_batches(rows)))
    facts = getattr(dataset, "facts", None)
    return [{**each, **facts(number)} for number, each in enumerate(found)] if facts else found


def load(
    source: str | Path, *, vocab_file: str | Path | None = None, dtype: str | None = None, **settings: Any
) -> Loaded:
    """Open what lies at a path or an address; the backend is the one that Keras has.

    Args:
        source: a run folder of any training verb, its `best/`, a conversion, a folder of transformers, a TF 1 prefix, a
            file of weights; or an archive of one of them, or its http(s) address, which is kept in the cache; or the
            folder of an export, or its .onnx file (`serving/exported.py`).
        vocab_file: WordPiece vocabulary or SentencePiece model, where none lies beside the weights.
        dtype: Keras policy of the model; by default the run's own, else float32.
        **settings: what decides answers beside the weights, by the names of the verb's flags, in the place of the
            run's: `num_beams`, `doc_stride`, `n_best_size` ...; for masks `mask_tokens`.

    Raises:
        UsageError: it is no model, lacks its config or its tokenizer, or a setting is unknown.
        OSError: a file cannot be read.
    """
    if (export := _export_at(source, vocab_file, dtype, settings)) is not None:
        return export
    kind_of_files, where = locate(source, prefer_best=True)
    content = _run_of(where) if kind_of_files == "ours" else None
    checkpoint = read_checkpoint(where, config=None if content is None else content.config)
    config = checkpoint.config
    if config is None:
        raise UsageError(f"no config lies beside the weights of {source}: put the config.json of the model there")
    row = content.row if content is not None else _foreign_row(checkpoint)
    computation = {**(content.computation if content is not None else {}), **({"dtype": dtype} if dtype else {})}
    host: Any = pretrained if row is None else host_of(row)
    settings = checked_settings(host, settings)
    if row is None:
        # Of a decoder there is nothing to ask before it is fine-tuned, but its states are part of the model.
        task, model = (
            pretrained.Reader(settings.get("mask_tokens") or pretrained.TOP),
            model_for(config, checkpoint.tensors),
        )
        load_into(model, checkpoint)
    else:
        kind: Any = find_kind(row.kind)
        task = kind.task(row, config, _computation(computation), HeadOptions())
        if content is None:
            checkpoint, _ = in_order_of(checkpoint, row.labels)
        model = task.build_model()
        load_into(model, checkpoint, allow_unexpected=kind.unused_heads)
    return Loaded(
        PRETRAINED if row is None else row.kind,
        () if row is None else row.labels,
        _tokenizer(checkpoint, content, vocab_file),
        model,
        config,
        row,
        _max_seq_length(config, content),
        checkpoint,
        task,
        host,
        {**_settings_of_run(checkpoint, host), **settings},
        precision=computation.get("dtype", "float32"),
    )


def _export_at(
    source: str | Path, vocab_file: str | Path | None, dtype: str | None, settings: Mapping[str, Any]
) -> Loaded | None:
    """Return the export that lies at a path, opened; None where none does."""
    from serving.exported import is_exported, open_export

    if not is_exported(Path(source)):
        return None
    if vocab_file is not None or dtype not in (None, "float32"):
        raise UsageError(f"{source} is an export, which has its own vocabulary and computes in float32")
    return open_export(source, **settings)


def _computation(values: Mapping[str, Any]) -> Any:
    from modeling.computation import Computation

    return Computation(**values)


def _run_of(where: Path) -> RunFile | None:
    """Return what the run says that wrote the checkpoint in a folder; None where none did."""
    folders = Checkpoint({}, None, "ours", where).folders
    folder = next((folder for folder in folders if (folder / NAME).is_file()), None)
    return None if folder is None else RunFile.read(folder)


def host_of(row: DatasetRow) -> Any:
    """Return the module of a row's kind, or of the kind that answers in its place."""
    kind = find_kind(row.kind)
    return find_kind(getattr(kind, "served_as", row.kind))


def _foreign_row(checkpoint: Checkpoint) -> DatasetRow | None:
    """Return the row of a checkpoint that no run wrote, by the head that it has; None for one without a task."""
    for name in KINDS:
        kind: Any = find_kind(name)
        head = getattr(kind, "head", "")
        sizes = [
            value.shape[-1] for tensor, value in checkpoint.tensors.items() if head and tensor.startswith(f"{head}/")
        ]
        if sizes:
            return kind.foreign_row(labels_of(checkpoint), sizes[0])
    return None


def _settings_of_run(checkpoint: Checkpoint, host: Any) -> dict[str, Any]:
    """Return the values of the run's flags that decide answers."""
    folders = [folder for folder in checkpoint.folders if (folder / NAME).is_file()]
    return settings_in(folders[0], host) if folders else {}


def checked_settings(host: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings; raises `UsageError` for one that the kind does not know."""
    known = settings_of(host)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f"; expected some of {', '.join(known) or 'none'}"
            raise UsageError(f"unknown setting {name!r}{hint}")
    return {name: value for name, value in given.items() if value is not None}


def _max_seq_length(config: Config, content: RunFile | None) -> int:
    run = content.tokenizer if content is not None and content.tokenizer.file else None
    return min(run.max_seq_length if run else MAX_SEQ_LENGTH, config.max_sequence_length)


def _tokenizer(checkpoint: Checkpoint, content: RunFile | None, given: str | Path | None) -> Tokenizer:
    """Return the tokenizer of the run, the given one, or the one that lies beside the weights; raises `UsageError`."""
    from data.tokenizers import load_tokenizer

    folder = next((folder for folder in checkpoint.folders if (folder / NAME).is_file()), checkpoint.folder)
    if content is not None and content.tokenizer.file and given is None:
        return content.tokenizer.load(folder)
    found = find_vocabulary(checkpoint, None if given is None else str(given))
    if not found:
        raise NoVocabularyError(f"no vocabulary lies beside the weights in {checkpoint.folder}")
    file = found[0]
    # The vocabulary may be the content of a tokenizer.json, of which there is no file.
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / file.name, *([Path(scratch) / "ids.txt"] if file.ids else [])]
        for path, each in zip(paths, itertools.chain([file], [file.ids] if file.ids else []), strict=True):
            path.write_bytes(each.content)
        named: dict[str, Any] = {"vocab_file" if file.name.endswith(".txt") else "spm_model_file": paths[0]}
        if file.ids:
            named = {"spm_model_file": paths[0], "vocab_file": paths[1], "segmentation": file.segmentation or None}
        lowered = content.tokenizer.do_lower_case if content is not None else is_lowered(checkpoint)
        tokenizer = load_tokenizer(**named, do_lower_case=lowered)
    if tokenizer.vocab_size > (size := checkpoint.config.padded_vocab_size if checkpoint.config else 0):
        raise UsageError(f"{file.path} has {tokenizer.vocab_size:,} tokens, the model {size:,}: {_GIVE_VOCABULARY}")
    return tokenizer
