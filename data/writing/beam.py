"""Shards made under Apache Beam: the same examples from any runner, in an order that only seed and input decide.

A span of input is the unit of work, as in `data.writing.local`; the shard of an example and its place there are drawn
from its key. All workers reach inputs and outputs under the same paths; outputs may be on any file system that Beam
writes to.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from absl.app import UsageError
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics.metric import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import AsList, TaggedOutput

from data import corpus, manifest
from data.examples import check_partners, check_text, encode_pairs, example_keys, nothing_made, plan, read_blocks
from data.randomness import keys, random_below, stream_number
from data.recipe import Recipe, Vocabulary
from data.tokenizers import Tokenizer, load_tokenizer

_SHARD = stream_number("shard")
_PLACE = stream_number("place in a shard")
_COUNTS = "counts"


class _MakeExamples(beam.DoFn):
    """(number, span) -> (shard, (place, record with its frame)); counts go to an output of their own."""

    def __init__(self, recipe: Recipe, tokenizer_files: Mapping[str, Any], num_shards: int):
        self._recipe, self._tokenizer_files, self._num_shards = recipe, tokenizer_files, num_shards

    def setup(self) -> None:
        self._tokenizer: Tokenizer = load_tokenizer(**self._tokenizer_files)
        self._vocabulary = Vocabulary.of(self._tokenizer, albert_zh_labels=self._recipe.albert_zh_labels)

    def process(self, element: tuple[int, corpus.Span]) -> Iterator[Any]:
        number, span = element
        sequence, made = 0, Metrics.counter("divan", "examples")
        for block in read_blocks(span, number, self._recipe, self._tokenizer, self._vocabulary):
            key = example_keys(self._recipe, number, sequence + np.arange(len(block.pairs)))
            sequence += len(block.pairs)
            shards = random_below((keys(key, _SHARD) >> np.uint64(32)).astype(np.uint32), self._num_shards).tolist()
            places = keys(key, _PLACE).tolist()
            counts = Counter(block.counts)
            del counts["examples"]
            done = 0
            for content, offsets, part in encode_pairs(block.tokens, block.pairs, key, self._recipe, self._vocabulary):
                whole = content.tobytes()
                for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
                    yield shards[done], (places[done], whole[begin:end])
                    done += 1
                counts += part
            made.inc(done)
            yield TaggedOutput(_COUNTS, dict(counts))


class _WriteShard(beam.DoFn):
    """(shard, its records) -> the shard's entry in the manifest; the records of one shard fit into memory."""

    def __init__(self, paths: Sequence[str], recipe: Recipe, *, accept_bad_text: bool):
        self._paths, self._recipe, self._accept = paths, recipe, accept_bad_text

    def process(
        self, element: tuple[int, Iterable[tuple[int, bytes]]], counts: Iterable[dict[str, int]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        shard, records = element
        _check(sum((Counter(part) for part in counts), Counter()), self._recipe, accept=self._accept)
        checksum, size, examples = hashlib.sha256(), 0, 0
        target = self._paths[shard]
        temporary = f"{target}.partial"
        with FileSystems.create(temporary) as stream:
            # Where places tie, which is nearly never, the bytes decide: the order depends on the content alone.
            for _, record in sorted(records):
                stream.write(record)
                checksum.update(record)
                size += len(record)
                examples += 1
        if FileSystems.exists(target):
            FileSystems.delete([target])
        FileSystems.rename([temporary], [target])
        entry = {"name": target.rsplit("/", 1)[-1], "examples": examples, "bytes": size, "sha256": checksum.hexdigest()}
        yield shard, entry


class _WriteManifest(beam.DoFn):
    """Writes the manifest when all shards are there."""

    def __init__(self, path: str, known: Mapping[str, Any]):
        self._path, self._known = path, known

    def process(
        self, _: None, shards: Iterable[tuple[int, dict[str, Any]]], counts: Iterable[dict[str, int]]
    ) -> Iterator[dict[str, Any]]:
        total = sum((Counter(part) for part in counts), Counter())
        entries = [entry for _, entry in sorted(shards, key=lambda item: item[0])]
        content = {**self._known, **manifest.tally(total, entries)}
        if FileSystems.exists(self._path):
            FileSystems.delete([self._path])
        with FileSystems.create(self._path) as stream:
            stream.write(manifest.to_bytes(content))
        yield content


def _check(counts: Counter[str], recipe: Recipe, *, accept: bool) -> None:
    """Raise `UsageError` where the text is nothing to make shards of, before the first is written."""
    if not counts["examples"]:
        raise nothing_made(counts, recipe)
    check_partners(counts, recipe)
    check_text(counts, accept=accept)


def _sum_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return dict(sum((Counter(part) for part in parts), Counter()))


def create_examples_with_beam(
    inputs: Sequence[Path],
    output_files: Sequence[str],
    recipe: Recipe,
    tokenizer_files: Mapping[str, Any],
    *,
    num_shards: int | None = None,
    runner: str,
    beam_options: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    encoding: str = corpus.UTF8,
    accept_bad_text: bool = False,
) -> None:
    """Build and run the pipeline; return when the runner says that it is done.

    Args:
        inputs: files, under paths that the workers can open.
        output_files: the shards, on any file system that Beam knows.
        recipe: what to make.
        tokenizer_files: arguments of `load_tokenizer`, under paths that the workers can open.
        num_shards: make this many numbered files of the only output file.
        runner: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner ...
        beam_options: its options, such as --project=NAME.
        flags: the resolved flags, for the manifest.
        encoding: of the files, by Python's name.
        accept_bad_text: go on where too much of the text is invalid or unknown.

    Raises:
        UsageError: the input holds nothing or bad text, or the options are not Beam's.
    """
    try:
        options = PipelineOptions([f"--runner={runner}", *beam_options])
        options.get_all_options(drop_default=True)
    except SystemExit:
        raise UsageError(
            f"--beam_options={','.join(beam_options)}: not options of Beam; see its documentation"
        ) from None
    tokenizer = load_tokenizer(**tokenizer_files)
    vocabulary_file = Path(tokenizer_files.get("spm_model_file") or tokenizer_files["vocab_file"])
    known = manifest.describe(inputs, recipe, tokenizer, vocabulary_file) | {"flags": dict(flags or {})}
    # Paths as text: a URL is no Path.
    stem, suffix = os.path.splitext(output_files[0])  # noqa: PTH122
    if num_shards:
        paths = [f"{stem}-{shard:05d}-of-{num_shards:05d}{suffix}" for shard in range(num_shards)]
    else:
        paths = list(output_files)
    folder = stem.rpartition("/")[0]
    if folder and not FileSystems.exists(folder):
        FileSystems.mkdirs(folder)
    with beam.Pipeline(options=options) as pipeline:
        made = (
            pipeline
            | "spans" >> beam.Create(list(enumerate(plan(inputs, encoding))))
            | "spread" >> beam.Reshuffle()
            | "make"
            >> beam.ParDo(_MakeExamples(recipe, tokenizer_files, len(paths))).with_outputs(_COUNTS, main="records")
        )
        counts = made[_COUNTS] | "count" >> beam.CombineGlobally(_sum_counts)
        # A shard without examples is written too, as an empty file.
        every_shard = pipeline | "shards" >> beam.Create([(shard, None) for shard in range(len(paths))])
        shards = (
            {"records": made["records"], "shards": every_shard}
            | "gather" >> beam.CoGroupByKey()
            | "records only" >> beam.Map(lambda item: (item[0], item[1]["records"]))
            | "write" >> beam.ParDo(_WriteShard(paths, recipe, accept_bad_text=accept_bad_text), counts=AsList(counts))
        )
        _ = (
            pipeline
            | "once" >> beam.Create([None])
            | "manifest"
            >> beam.ParDo(
                _WriteManifest(stem + manifest.SUFFIX, known),
                shards=AsList(shards),
                counts=AsList(counts),
            )
        )
