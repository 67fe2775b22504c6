"""Measures create_pretraining_data.py against a plain implementation of the same steps, and whether its memory is flat.

python3 -m benchmarks.data_generation --input_file=TEXT --vocab_file=VOCAB writes its results to benchmarks/results.
Both sides make the examples of albert_zh's create_pretrain_data.sh: 512 tokens, 51 predictions, rate 0.10,
whole words. The plain side is one process and Python lists, as the scripts of BERT's line are: it tokenises once,
finds words in every pass, and writes through tf.train.Example.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.flags import flag, run

if TYPE_CHECKING:
    from data.tokenizers.wordpiece import WordPieceTokenizer

ROOT = Path(__file__).resolve().parents[1]
MAX_SEQ_LENGTH, MAX_PREDICTIONS, RATE, SHORT_SEQ_PROB = 512, 51, 0.10, 0.1
# albert_zh's script on two cores of a machine that took 1.9 s for 20 million additions.
ALBERT_ZH_EXAMPLES_PER_SECOND, ALBERT_ZH_ADDITIONS_SECONDS, ALBERT_ZH_DUPE_FACTOR = 228, 1.9, 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how fast pretraining data is made, with how much memory, and where the time goes."""

    input_file: tuple[str, ...] = flag(("data/samples/zh/*.txt",), help="text; repeated or cut to the sizes asked for")
    vocab_file: str = flag("albert_config/vocab.txt", help="WordPiece vocabulary")
    megabytes: tuple[float, ...] = flag((10.0,), help="sizes of input to measure ours on", unit="MB")
    other_objectives: tuple[str, ...] = flag((), help="also measured, on the first size: structbert, bert, masked_lm")
    plain_megabytes: float = flag(0.5, help="size of input for the plain implementation", unit="MB")
    dupe_factor: int = flag(10, help="passes over the text", minimum=1)
    num_workers: int = flag(2, help="processes of ours", minimum=1)
    repeats: int = flag(1, help="runs of each, of which the fastest counts; others may be using the machine", minimum=1)
    results: str = flag("benchmarks/results/data_generation", help="where to write, without .json and .md")
    measure: str | None = flag(None, help="internal: plain or split, run in a process of its own")


def main(options: Options) -> int:
    """Runs the measurements, each in a process of its own; prints and writes a table."""
    if options.measure:
        path = Path(options.input_file[0])
        print(json.dumps((plain if options.measure == "plain" else split)(path, options)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        rows = []
        for megabytes in options.megabytes:
            size = write_text(text, options, megabytes)
            runs = [ours(text, size, options, folder) for _ in range(options.repeats)]
            rows.append(min(runs, key=lambda row: row["seconds"]))
        size = write_text(text, options, options.megabytes[0])
        for objective in options.other_objectives:
            runs = [ours(text, size, options, folder, objective) for _ in range(options.repeats)]
            rows.append(min(runs, key=lambda row: row["seconds"]))
        write_text(text, options, min(options.megabytes))
        seconds = in_process("split", text, options)
        plain_bytes = write_text(text, options, options.plain_megabytes)
        plain_runs = [in_process("plain", text, options) for _ in range(options.repeats)]
    plain_row = min(plain_runs, key=lambda row: row["seconds"])
    plain_row |= {"implementation": "plain", "megabytes": plain_bytes / 1e6, "workers": 1}
    additions = min(additions_seconds() for _ in range(options.repeats))
    reference = ALBERT_ZH_EXAMPLES_PER_SECOND * ALBERT_ZH_ADDITIONS_SECONDS / additions
    for row in rows:
        row["times_plain"] = row["examples_per_second"] / plain_row["examples_per_second"]
        row["times_albert_zh"] = row["examples_per_second"] / reference
    result = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg()[1],
        "repeats": options.repeats,
        "twenty_million_additions_seconds": additions,
        "albert_zh_examples_per_second_scaled_to_this_machine": reference,
        "dupe_factor": options.dupe_factor,
        "rows": [*rows, plain_row],
        "seconds_of_work": seconds,
    }
    table = as_markdown(result)
    print(table)
    path = ROOT / options.results
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    return 0


def write_text(path: Path, options: Options, megabytes: float) -> int:
    """Write the input, repeated or cut at documents; a sentence of its own marks each repetition; return the bytes."""
    from data.corpus import expand_inputs

    size, repetition = 0, 0
    with path.open("wb") as stream:
        while size < megabytes * 1e6:
            for source in expand_inputs([str(ROOT / name) for name in options.input_file]):
                for document in source.read_bytes().strip().split(b"\n\n"):
                    if size >= megabytes * 1e6:
                        break
                    mark = f"第{repetition}次。\n".encode() if repetition else b""
                    size += stream.write(mark + document + b"\n\n")
            repetition += 1
    return size


def ours(text: Path, size_bytes: int, options: Options, folder: str, objective: str = "albert") -> dict[str, Any]:
    """One run of the command, start-up included."""
    command = [
        *(sys.executable, str(ROOT / "create_pretraining_data.py")),
        *(f"--input_file={text}", f"--output_file={folder}/x.tfrecord", f"--vocab_file={options.vocab_file}"),
        *(f"--max_seq_length={MAX_SEQ_LENGTH}", f"--max_predictions_per_seq={MAX_PREDICTIONS}"),
        *(f"--masked_lm_prob={RATE}", f"--short_seq_prob={SHORT_SEQ_PROB}", "--do_whole_word_mask=True"),
        *(f"--dupe_factor={options.dupe_factor}", f"--num_workers={options.num_workers}", "--shard_size=100000"),
        f"--objective={objective}",
    ]
    begin = time.perf_counter()
    # Of its own process and its workers, the largest resident set.
    script = (
        "import json, resource, subprocess, sys; r = subprocess.run(sys.argv[1:]); u = resource.getrusage(-1); "
        "print(json.dumps([r.returncode, u.ru_maxrss, u.ru_utime + u.ru_stime]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    elapsed = time.perf_counter() - begin
    code, peak_kilobytes, cpu_seconds = json.loads(result.stdout.splitlines()[-1])
    if code:
        raise RuntimeError(result.stderr)
    manifest = json.loads((Path(folder) / "x.manifest.json").read_text(encoding="utf-8"))
    for shard in manifest["shards"]:
        (Path(folder) / shard["name"]).unlink()
    return {
        "implementation": "ours" if objective == "albert" else f"ours, {objective}",
        "megabytes": size_bytes / 1e6,
        "workers": options.num_workers,
        "examples": manifest["num_examples"],
        "seconds": elapsed,
        "cpu_seconds": cpu_seconds,
        "examples_per_second": manifest["num_examples"] / elapsed,
        "megabytes_per_second": size_bytes / 1e6 / elapsed,
        "peak_megabytes_per_process": peak_kilobytes / 1024,
    }


def in_process(measure: str, text: Path, options: Options) -> dict[str, Any]:
    """Runs this file once more for a measurement that has to be alone in its process."""
    flags = [f"--measure={measure}", f"--input_file={text}", f"--vocab_file={options.vocab_file}"]
    flags += [f"--dupe_factor={options.dupe_factor}", f"--num_workers={options.num_workers}"]
    command = [sys.executable, "-m", "benchmarks.data_generation", *flags]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def split(text: Path, options: Options) -> dict[str, float]:
    """Seconds of work by stage, all workers together."""
    from data.masking import Masking
    from data.recipe import Recipe
    from data.tokenizers import load_tokenizer
    from data.writing.local import create_examples
    from data.writing.output import Output

    recipe = Recipe(
        objective="albert",
        masking=Masking(RATE, MAX_PREDICTIONS),
        dynamic=False,
        whole_word=True,
        segmenter="rjieba",
        max_seq_length=MAX_SEQ_LENGTH,
        dupe_factor=options.dupe_factor,
        short_seq_prob=SHORT_SEQ_PROB,
        seed=12345,
    )
    output = Output((text.with_name("split.tfrecord"),))
    tokenizer = load_tokenizer(vocab_file=options.vocab_file)
    result = create_examples([text], output, recipe, tokenizer, num_workers=options.num_workers)
    return dict(sorted(result.seconds.items(), key=lambda item: -item[1]))


def additions_seconds() -> float:
    """How long this machine takes for a loop of twenty million additions, to compare machines by."""
    script = "import time\nt = time.time()\nx = 0\nfor i in range(20_000_000):\n    x += i\nprint(time.time() - t)"
    return float(subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout)


def as_markdown(result: dict[str, Any]) -> str:
    """The results for a person."""
    lines = [
        "# Making pretraining data",
        "",
        f"{result['machine']}; 20 million additions in {result['twenty_million_additions_seconds']:.2f} s; fastest of "
        f"{result['repeats']} run(s), with a load average of {result['load_average']:.1f} from this and others' work. "
        f"{MAX_SEQ_LENGTH} tokens, {MAX_PREDICTIONS} predictions, rate {RATE}, whole words, "
        f"{result['dupe_factor']} passes; start-up included.",
        "",
        "| implementation | input MB | processes | examples | s | CPU s | examples/s | MB/s | peak MB a process |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['implementation']} | {row['megabytes']:.1f} | {row['workers']} | {row['examples']:,} | "
        f"{row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['examples_per_second']:,.0f} | "
        f"{row['megabytes_per_second']:.2f} | {row['peak_megabytes_per_process']:.0f} |"
        for row in result["rows"]
    ]
    first = result["rows"][0]
    total = sum(result["seconds_of_work"].values())
    parts = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in result["seconds_of_work"].items())
    comparison = f"Ours makes {first['times_plain']:.1f} times the examples a second of the plain implementation"
    if result["dupe_factor"] == ALBERT_ZH_DUPE_FACTOR:
        comparison += (
            f", and {first['times_albert_zh']:.0f} times those of albert_zh's script "
            f"({ALBERT_ZH_EXAMPLES_PER_SECOND} a second where the additions took {ALBERT_ZH_ADDITIONS_SECONDS} s, "
            f"{result['albert_zh_examples_per_second_scaled_to_this_machine']:.0f} scaled to this machine)"
        )
    for row in result["rows"]:
        _, _, objective = row["implementation"].partition(", ")
        if objective:
            ratio = row["examples_per_second"] / first["examples_per_second"]
            by_cpu = ratio * row["seconds"] / first["seconds"] * first["cpu_seconds"] / row["cpu_seconds"]
            comparison += (
                f". Of {objective} it makes {ratio:.2f} times ALBERT's examples a second ({by_cpu:.2f} by CPU time)"
            )
    lines += ["", comparison + ".", "", f"Where the work goes: {parts}."]
    return "\n".join(lines)


# -- the plain implementation ------------------------------------------------------------------------------------------


def plain(text: Path, options: Options) -> dict[str, Any]:
    """Make the examples with Python lists in one process; TensorFlow's import is not counted."""
    import tensorflow as tf

    from data.tokenizers.wordpiece import WordPieceTokenizer

    begin, begin_cpu = time.perf_counter(), time.process_time()
    tokenizer = WordPieceTokenizer.load(Path(options.vocab_file), do_lower_case=True)
    draw = random.Random(12345)
    documents = [
        [(line, tokenizer.tokens(tokenizer.encode(line))) for line in document.split("\n") if line]
        for document in text.read_text(encoding="utf-8").split("\n\n")
    ]
    documents = [document for document in documents if document]
    examples = []
    for _ in range(options.dupe_factor):
        for document in documents:
            examples += plain_examples(document, tokenizer, draw)
    draw.shuffle(examples)
    id_of = {token: i for i, token in enumerate(tokenizer.tokens(range(tokenizer.vocab_size)))}
    with tf.io.TFRecordWriter(str(text.with_name("plain.tfrecord"))) as writer:
        for example in examples:
            writer.write(plain_record(example, id_of, tf))
    seconds = time.perf_counter() - begin
    return {
        "examples": len(examples),
        "seconds": seconds,
        "cpu_seconds": time.process_time() - begin_cpu,
        "examples_per_second": len(examples) / seconds,
        "megabytes_per_second": text.stat().st_size / 1e6 / seconds,
        "peak_megabytes_per_process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


@dataclasses.dataclass
class PlainExample:
    """An example as lists of tokens."""

    tokens: list[str]
    segments: list[int]
    positions: list[int]
    labels: list[str]
    swapped: bool


def plain_words(line: str, tokens: list[str]) -> list[bool]:
    """Which tokens begin a word, by the segmenter's words spelt out in characters."""
    import rjieba

    starts, character, boundaries = [], 0, set()
    for word in rjieba.cut("".join(line.split()).lower()):
        boundaries.add(character)
        character += len(word)
    character = 0
    for token in tokens:
        starts.append(character in boundaries and not token.startswith("##"))
        character += 1 if token == "[UNK]" else len(token.removeprefix("##"))
    return starts


def plain_examples(
    document: Sequence[tuple[str, list[str]]], tokenizer: WordPieceTokenizer, draw: random.Random
) -> Iterator[PlainExample]:
    """Gathers sentences to the target length, splits, swaps, truncates and masks, token by token."""
    most = MAX_SEQ_LENGTH - 3
    chunk: list[list[tuple[str, bool]]] = []
    length = 0
    target = draw.randint(2, most) if draw.random() < SHORT_SEQ_PROB else most
    for i, (line, tokens) in enumerate(document):
        chunk.append(list(zip(tokens, plain_words(line, tokens), strict=True)))
        length += len(tokens)
        if len(chunk) > 1 and (length >= target or i == len(document) - 1):
            middle = draw.randint(1, len(chunk) - 1)
            a = [token for sentence in chunk[:middle] for token in sentence]
            b = [token for sentence in chunk[middle:] for token in sentence]
            while len(a) + len(b) > most:
                longer = a if len(a) > len(b) else b
                longer.pop(0 if draw.random() < 0.5 else -1)
            swapped = draw.random() < 0.5
            if a and b:
                yield plain_masked(*((b, a) if swapped else (a, b)), swapped, tokenizer, draw)
            chunk, length = [], 0
            target = draw.randint(2, most) if draw.random() < SHORT_SEQ_PROB else most


def plain_masked(
    a: list[tuple[str, bool]],
    b: list[tuple[str, bool]],
    swapped: bool,
    tokenizer: WordPieceTokenizer,
    draw: random.Random,
) -> PlainExample:
    """Hides whole words in random order up to the budget."""
    pairs = [("[CLS]", True), *a, ("[SEP]", True), *b, ("[SEP]", True)]
    tokens = [token for token, _ in pairs]
    words: list[list[int]] = []
    for i, (token, starts) in enumerate(pairs):
        if token in ("[CLS]", "[SEP]"):
            continue
        if starts or not words or pairs[i - 1][0] in ("[CLS]", "[SEP]"):
            words.append([i])
        else:
            words[-1].append(i)
    draw.shuffle(words)
    budget = min(MAX_PREDICTIONS, max(1, round(len(tokens) * RATE)))
    shown, chosen = list(tokens), []
    for word in words:
        if len(chosen) >= budget:
            break
        if len(chosen) + len(word) > budget:
            continue
        for i in word:
            action = draw.random()
            if action < 0.8:
                shown[i] = "[MASK]"
            elif action >= 0.9:
                shown[i] = tokenizer.tokens([int(draw.choice(tokenizer.replacement_ids))])[0]
            chosen.append(i)
    chosen.sort()
    segments = [0] * (len(a) + 2) + [1] * (len(b) + 1)
    return PlainExample(shown, segments, chosen, [tokens[i] for i in chosen], swapped)


def plain_record(example: PlainExample, id_of: dict[str, int], tf: Any) -> bytes:
    """Pads and serializes one example through TensorFlow's protobuf."""

    def padded(values: list[int], width: int) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values + [0] * (width - len(values))))

    count = len(example.positions)
    weights = [1.0] * count + [0.0] * (MAX_PREDICTIONS - count)
    features = {
        "input_ids": padded([id_of[token] for token in example.tokens], MAX_SEQ_LENGTH),
        "input_mask": padded([1] * len(example.tokens), MAX_SEQ_LENGTH),
        "segment_ids": padded(example.segments, MAX_SEQ_LENGTH),
        "masked_lm_positions": padded(example.positions, MAX_PREDICTIONS),
        "masked_lm_ids": padded([id_of[token] for token in example.labels], MAX_PREDICTIONS),
        "masked_lm_weights": tf.train.Feature(float_list=tf.train.FloatList(value=weights)),
        "next_sentence_labels": padded([int(example.swapped)], 1),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


if __name__ == "__main__":
    run(main, Options)
