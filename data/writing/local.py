"""Shards made by local processes: streaming, resumable, with bounded memory.

Phase one writes the tokens and pairs of every span of input, phase two the pieces of the output. The result is a
function of the input, the recipe and the seed; not of the number of workers, of interruptions or machines.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from absl.app import UsageError

from data import corpus, manifest
from data.examples import check_partners, check_text, nothing_made, plan
from data.recipe import Recipe, Vocabulary
from data.tokenizers import Tokenizer
from data.writing import claims, pieces, spans
from data.writing.output import Output
from data.writing.workers import Call, Done, Job, Pool, Report
from ground.files import write_atomically


@dataclass
class Result:
    """The outcome of `create_examples`.

    Attributes:
        manifest: of the shards.
        seconds: of work by stage, summed over workers.
        found: whether an interrupted command had finished all of it.
    """

    manifest: dict[str, Any]
    seconds: dict[str, float]
    found: bool = False


def _report_nothing(stage: str, done: float, total: float) -> None:
    del stage, done, total


def create_examples(
    inputs: Sequence[Path],
    output: Output,
    recipe: Recipe,
    tokenizer: Tokenizer,
    *,
    num_workers: int,
    vocabulary_file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    report: Report = _report_nothing,
    encoding: str = corpus.UTF8,
    accept_bad_text: bool = False,
    one_of_several: bool = False,
) -> Result:
    """Write shards and manifest; continue what an interrupted call with the same arguments left.

    Args:
        inputs: files or `tfds:` names, from `corpus.expand_inputs`.
        output: where to.
        recipe: what to make.
        tokenizer: for the text.
        num_workers: processes; the result does not depend on it.
        vocabulary_file: named in the manifest.
        flags: the resolved flags, for the manifest.
        report: is called as work is done.
        encoding: of the files, by Python's name; the shards do not depend on it.
        accept_bad_text: go on where too much of the text is invalid or unknown.
        one_of_several: note that the job is done, so that the same call only finds it, until `claims.forget`.

    Raises:
        UsageError: the input holds nothing that an example can be made of or is bad text, or the output would be
            written over what is read or what is of somebody else; nothing is written then.
    """
    work = output.work_path
    parts = plan(inputs, encoding, functools.partial(report, "decoding"))
    files = [file for path in inputs for file in corpus.files_of(path)]
    reads = {"--input_file": files, "--vocab_file or --spm_model_file": [vocabulary_file]}
    claims.check(output, reads)
    for path in output.files:
        path.parent.mkdir(parents=True, exist_ok=True)
    claims.open_work(work, _work_plan(inputs, parts, output, recipe, tokenizer))
    if one_of_several and (former := claims.finished(output)) is not None:
        return Result(former, {}, found=True)
    vocabulary = Vocabulary.of(tokenizer, albert_zh_labels=recipe.albert_zh_labels)
    with _removed_if_refused(work), Pool(num_workers, Job(recipe, vocabulary, tokenizer, work)) as pool:
        segments, counts = _read(pool, parts, recipe, work, report)
        check_text(counts, accept=accept_bad_text)
        num_examples = sum(examples for *_, examples in segments)  # The number of files is known only now.
        claims.check(output, reads, num_examples)
        claims.claim(output, output.paths(num_examples))
        shards, written = _write(pool, segments, output, recipe, report)
    del counts["examples"]  # Counted again as they are written.
    known = manifest.describe(inputs, recipe, tokenizer, vocabulary_file)
    content = known | manifest.tally(counts + written, shards) | {"flags": dict(flags or {})}
    claims.remove_former(output.manifest_path, (shard["name"] for shard in shards))
    write_atomically(output.manifest_path, manifest.to_bytes(content))
    claims.finish(output, content)
    if not one_of_several:
        claims.remove_work(work)
    return Result(content, pool.seconds)


@contextlib.contextmanager
def _removed_if_refused(work: Path) -> Iterator[None]:
    """Remove the folder of a job whose text is refused: the same command would be refused again, not go on from it."""
    try:
        yield
    except UsageError:
        claims.abandon(work)
        raise


def _work_plan(
    inputs: Sequence[Path], parts: Sequence[corpus.Span], output: Output, recipe: Recipe, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return all that the files of an unfinished job depend on: a job of another plan begins anew."""
    return {
        "recipe": asdict(recipe),
        "spans": [[str(span.path), span.start, span.end, span.encoding] for span in parts],
        "sizes": [[str(path), *manifest.stamp(path)] for path in inputs],
        "tokenizer": tokenizer.fingerprint,
        "output": [*map(str, output.files), output.num_shards, output.shard_size],
        "versions": manifest.versions(recipe),
    }


def _read(
    pool: Pool, parts: Sequence[corpus.Span], recipe: Recipe, work: Path, report: Report
) -> tuple[tuple[tuple[int, int, int], ...], Counter[str]]:
    """Run phase one; return (span, segment, examples) of all segments, and the counts.

    Raises:
        UsageError: no example, or not every label, can be made of the text.
    """
    calls = []
    for index, span in enumerate(parts):
        size = (span.end if span.end is not None else manifest.stamp(span.path)[0]) - span.start
        calls.append(Call(spans.write_span, (span, index), size, work / f"{spans.span_name(index)}.json"))
    counts, segments = Counter[str](), []
    for index, done in enumerate(pool.run("reading", calls, report)):
        counts.update(done["counts"])
        segments += [(index, number, examples) for number, examples in enumerate(done["examples"])]
    if not counts["examples"]:
        raise nothing_made(counts, recipe)
    check_partners(counts, recipe)
    return tuple(segments), counts


def _write(
    pool: Pool, segments: tuple[tuple[int, int, int], ...], output: Output, recipe: Recipe, report: Report
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Run phase two; return the shards' entries for the manifest, and the counts."""
    num_examples = sum(examples for *_, examples in segments)
    paths = output.paths(num_examples)
    pieces_per_shard = max(1, -(-num_examples * recipe.width // (pieces.PIECE_TOKENS * len(paths))))
    deal = pieces.Deal(segments, pieces_per_shard * len(paths))
    # With at least two shards per worker, each worker writes whole shards; otherwise workers write parts, which are
    # joined afterwards.
    whole = len(paths) >= 2 * pool.num_workers or pieces_per_shard == 1
    members = pieces_per_shard if whole else 1
    files = paths if whole else [output.work_path / f"piece-{i:06d}.records" for i in range(deal.num_pieces)]
    calls = []
    for i, file in enumerate(files):
        marker = output.work_path / f"{'shard' if whole else 'piece'}-{i:06d}.json"
        arguments = (deal, range(i * members, (i + 1) * members), file, marker, whole)
        calls.append(Call(pieces.write_pieces, arguments, num_examples / len(files), marker))
    written = pool.run("writing", calls, report)
    counts = sum((Counter(done["counts"]) for done in written), Counter[str]())
    examples = [done["counts"].get("examples", 0) for done in written]
    if not whole:
        groups = [slice(i * pieces_per_shard, (i + 1) * pieces_per_shard) for i in range(len(paths))]
        joins = [Call(pieces.join_parts, (files[part], path)) for part, path in zip(groups, paths, strict=True)]
        written = pool.run("joining", joins, _report_nothing)
        examples = [sum(examples[part]) for part in groups]
    return [_entry(output, *shard) for shard in zip(paths, examples, written, strict=True)], counts


def _entry(output: Output, path: Path, examples: int, done: Done) -> dict[str, Any]:
    """Return what the manifest says of a shard."""
    return {
        "name": os.path.relpath(path, output.manifest_path.parent),
        "examples": examples,
        "bytes": done["bytes"],
        "sha256": done["sha256"],
    }
