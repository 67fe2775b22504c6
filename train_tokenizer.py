"""Learns a tokenizer from text: a WordPiece vocabulary as BERT's, or a SentencePiece model as ALBERT's or XLM-R's.

albert_config/vocab.txt was made, and is made again after a change of the sample text, by

    rm albert_config/vocab.txt
    python3 train_tokenizer.py --input_file='data/samples/*/*.txt' --output_file=albert_config/vocab.txt \
        --character_coverage=1 --min_frequency=1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs

if TYPE_CHECKING:
    from data.corpus import Counts

SAMPLE_SENTENCES = 10_000
VERB = "train_tokenizer"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Learn a WordPiece vocabulary or a SentencePiece model from text."""

    _data: ClassVar = Group.DATA
    input_file: tuple[str, ...] = flag(
        help="text: paths, patterns or tfds:NAME, separated by commas; plain text, JSON lines, compressed or not"
    )
    output_file: str = flag(help="the vocabulary (vocab.txt) or the SentencePiece model (spiece.model) to write")
    _model: ClassVar = Group.MODEL
    model_type: str = flag(
        "wordpiece",
        help="wordpiece; or a SentencePiece model, unigram (as ALBERT and XLM-R use it) or bpe",
        choices=("wordpiece", "unigram", "bpe"),
        essential=True,
    )
    vocab_size: int | None = flag(
        None,
        help="size of the vocabulary; by default 21128 for wordpiece, else 30000",
        unit="tokens",
        minimum=8,
        essential=True,
    )
    do_lower_case: bool = flag(
        True, help="lower-case the text and strip accents; not for --layout=xlmr", essential=True
    )
    character_coverage: float | None = flag(
        None,
        help="share of the text's characters that become tokens; by default 0.9999 for wordpiece, else 0.99995",
        minimum=0.0,
        maximum=1.0,
    )
    common_characters: bool = flag(
        True,
        help="wordpiece: start from the characters that GB 2312, Big5 and JIS X 0208 call common and from all pairs of "
        "letters and of digits, whether or not the text has them",
    )
    min_frequency: int = flag(2, help="wordpiece: learn sub-words that occur this often", minimum=1)
    layout: str = flag(
        "albert",
        help="SentencePiece: albert, <pad> 0 <unk> 1 [CLS] 2 [SEP] 3 [MASK] 4; xlmr, <s> 0 <pad> 1 </s> 2 <unk> 3",
        choices=("albert", "xlmr"),
    )
    max_sentences: int = flag(
        10_000_000, help="SentencePiece: learn from a random sample of this size", unit="sentences", minimum=1
    )
    text_field: str = flag("text", help="field of JSON lines and tfds examples that holds the text", group=Group.DATA)
    encoding: str = flag(
        "utf-8", help="of the files, by its name in Python: gb18030, big5, utf-16, cp1252 ...", group=Group.DATA
    )
    accept_bad_text: bool = flag(
        False, help="go on where files look like no text or another encoding", group=Group.DATA
    )


# --common_characters=False says what happens with a SentencePiece model anyway.
NEEDS = (
    Need(("min_frequency",), "--model_type=wordpiece", lambda o: o.model_type == "wordpiece"),
    Need(("layout", "max_sentences"), "--model_type=unigram or bpe", lambda o: o.model_type != "wordpiece"),
)


def main(options: Options) -> None:
    """Write the tokenizer and print how it does on the text. Raises `UsageError` for text or sizes that do not do."""
    check_needs(options, NEEDS)
    from data.corpus import Counts, check_inputs, expand_inputs, find_encoding
    from data.tokenizers import load_tokenizer
    from data.tokenizers.training import train_sentencepiece, train_wordpiece
    from data.tokenizers.wordpiece import vocabulary_bytes
    from ground.files import write_atomically
    from ground.outputs import Target, announce, check_outputs, was_written

    inputs, output = expand_inputs(options.input_file), Path(options.output_file)
    check_outputs({"--input_file": inputs}, [Target(output, "--output_file", lambda path: was_written(path, VERB))])
    encoding = find_encoding(options.encoding)
    check_inputs(inputs, encoding, accept=options.accept_bad_text)
    counts = Counts()
    sample: list[str] = []
    given = {"vocab_size": options.vocab_size, "character_coverage": options.character_coverage}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.model_type == "wordpiece":
        vocabulary = train_wordpiece(
            sentences(options, inputs, encoding, counts, sample),
            do_lower_case=options.do_lower_case,
            common=options.common_characters,
            min_frequency=options.min_frequency,
            **chosen,
        )
        content = vocabulary_bytes(vocabulary)
    else:
        content = train_sentencepiece(
            sentences(options, inputs, encoding, counts, sample),
            model_type=options.model_type,
            layout=options.layout,
            do_lower_case=options.do_lower_case,
            max_sentences=options.max_sentences,
            **chosen,
        )
    announce(output.parent, VERB, {output.name: len(content)})
    write_atomically(output, content)

    kind = "vocab_file" if options.model_type == "wordpiece" else "spm_model_file"
    tokenizer = load_tokenizer(**{kind: output}, do_lower_case=options.do_lower_case)
    encoding = tokenizer.encode_batch(sample)
    unknown = (encoding.ids == tokenizer.unk_id).mean()
    print(
        f"read     {counts.documents:,} documents, {counts.sentences:,} sentences, {counts.characters:,} characters"
        + (f"; {counts.mended()}" if counts.mended() else "")
        + f"\nwrote    {output}: {tokenizer.vocab_size:,} tokens, {len(tokenizer.replacement_ids):,} of them text"
        + f"\non       the first {len(sample):,} sentences: {unknown:.3%} [UNK], "
        + f"{len(encoding.ids) / max(sum(map(len, sample)), 1):.2f} tokens a character"
    )


def sentences(
    options: Options, inputs: Sequence[Path], encoding: str, counts: Counts, sample: list[str]
) -> Iterator[str]:
    """Yield the sentences of the inputs, with progress; the first ones are added to the sample, what is read to counts.

    Raises `UsageError` for text that cannot be read, and at its end for text that is mostly damaged.
    """
    from data.corpus import Span, read_documents
    from data.examples import check_text
    from ground.progress import Progress

    done, total = 0, sum(path.stat().st_size for path in inputs if path.is_file())
    scale, unit = (1e6, "MB") if total > 1e7 else (1e3, "kB")
    with Progress(total / scale, unit, "reading", interval_seconds=5) as progress:

        def report(size: int) -> None:
            nonlocal done
            done += size
            progress.update(done / scale)

        spans = [Span(path, encoding=encoding) for path in inputs]
        for document in read_documents(spans, counts, text_field=options.text_field, report=report):
            if len(sample) < SAMPLE_SENTENCES:
                sample.extend(document)
            yield from document
    read = {"read_invalid_sequences": counts.invalid_sequences, "read_bytes": counts.bytes}
    check_text(read, accept=options.accept_bad_text)


if __name__ == "__main__":
    run(main, Options)
