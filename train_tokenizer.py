"""Learns a tokenizer from text: a WordPiece vocabulary as BERT's, or a SentencePiece model as ALBERT's or XLM-R's.

albert_config/vocab.txt was made, and is made again after a change of the sample text, by

    rm albert_config/vocab.txt
    python3 train_tokenizer.py --input_file='data/samples/*/*.txt' --output_file=albert_config/vocab.txt \
        --character_coverage=1 --min_frequency=1
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from commands.flags import Group, flag, run
from commands.needs import Need, check_needs
from data.languages import ALPHA

if TYPE_CHECKING:
    from data.corpus import Corpus, Counts

SAMPLE_SENTENCES = 10_000
VERB = "train_tokenizer"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Learn a WordPiece vocabulary or a SentencePiece model from text."""

    _data: ClassVar = Group.DATA
    input_file: tuple[str, ...] = flag(
        help="text: paths, patterns or tfds:NAME, separated by commas; plain text, JSON lines, compressed or not. Of "
        "several languages: en=PATH,zh=PATH; sentences and their translations: FIRST:SECOND or en-zh=PATH"
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
    language_alpha: float = flag(
        ALPHA,
        help="text of several languages: sentences of each are left out or repeated until it is learnt from in "
        "proportion to its share of the text to this power; 1 takes the text as it is",
        minimum=0,
        group=Group.DATA,
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
    from data.corpus import Counts, check_inputs, files_of, find_corpora, find_encoding
    from data.tokenizers import load_tokenizer
    from data.tokenizers.training import train_sentencepiece, train_wordpiece
    from data.tokenizers.wordpiece import vocabulary_bytes
    from ground.files import write_atomically
    from ground.outputs import Target, announce, check_outputs, was_written

    corpora, output = find_corpora(options.input_file), Path(options.output_file)
    named = any(corpus.language for corpus in corpora)
    check_needs(options, (Need(("language_alpha",), "languages, as --input_file=en=PATH,zh=PATH", lambda _: named),))
    files = [file for corpus in corpora for path in corpus.inputs for file in files_of(path)]
    check_outputs({"--input_file": files}, [Target(output, "--output_file", lambda path: was_written(path, VERB))])
    encoding = find_encoding(options.encoding)
    check_inputs(files, encoding, accept=options.accept_bad_text)
    counts = Counts()
    sample: list[str] = []
    given = {"vocab_size": options.vocab_size, "character_coverage": options.character_coverage}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.model_type == "wordpiece":
        vocabulary = train_wordpiece(
            sentences(options, corpora, encoding, counts, sample),
            do_lower_case=options.do_lower_case,
            common=options.common_characters,
            min_frequency=options.min_frequency,
            **chosen,
        )
        content = vocabulary_bytes(vocabulary)
    else:
        content = train_sentencepiece(
            sentences(options, corpora, encoding, counts, sample),
            model_type=options.model_type,
            layout=options.layout,
            do_lower_case=options.do_lower_case,
            max_sentences=options.max_sentences,
            **chosen,
        )
    announce(output.parent, VERB, {output.name: len(content)})
    write_atomically(output, content)

    pieces = options.model_type != "wordpiece"
    tokenizer = load_tokenizer(
        vocab_file=None if pieces else output,
        spm_model_file=output if pieces else None,
        do_lower_case=options.do_lower_case,
    )
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
    options: Options, corpora: Sequence[Corpus], encoding: str, counts: Counts, sample: list[str]
) -> Iterator[str]:
    """Yield the sentences of the inputs, with progress; the first ones are added to the sample, what is read to counts.

    Where languages are named, they are read once more before, and then as often each as --language_alpha says.

    Raises `UsageError` for text that cannot be read, and at its end for text that is mostly damaged.
    """
    from data.corpus import Counts
    from data.examples import check_text
    from data.languages import drawn_shares, repeated

    if not any(corpus.language for corpus in corpora):
        for _, sentence in read(options, corpora, encoding, counts, sample):
            yield sentence
    else:
        sizes = Counter(language for language, _ in read(options, corpora, encoding, Counts(), []))
        shares = drawn_shares(sizes, options.language_alpha)
        for name, size in sizes.items():
            print(f"language {name}: {size:,} sentences, {size / sizes.total():.1%}; learnt from as {shares[name]:.1%}")
        wanted = {name: round(share * sizes.total()) for name, share in shares.items()}
        places = Counter[str]()
        for language, sentence in read(options, corpora, encoding, counts, sample):
            place, size = places[language], sizes[language]
            places[language] += 1
            yield from repeated(sentence, place, size, wanted[language])
    found = {"read_invalid_sequences": counts.invalid_sequences, "read_bytes": counts.bytes}
    check_text(found, accept=options.accept_bad_text)


def read(
    options: Options, corpora: Sequence[Corpus], encoding: str, counts: Counts, sample: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield (language, sentence), with progress; of a pair of languages each side is of its own."""
    from data.corpus import files_of, plan_spans, read_documents
    from data.languages import BETWEEN
    from ground.progress import Progress

    files = [file for corpus in corpora for path in corpus.inputs for file in files_of(path)[:1]]
    done, total = 0, sum(file.stat().st_size for file in files if file.is_file())
    scale, unit = (1e6, "MB") if total > 1e7 else (1e3, "kB")
    with Progress(total / scale, unit, "reading", interval_seconds=5) as progress:

        def report(size: int) -> None:
            nonlocal done
            done += size
            progress.update(done / scale)

        for corpus in corpora:
            languages = corpus.language.split(BETWEEN)
            spans = plan_spans(corpus.inputs, sys.maxsize, encoding)
            given = {"text_field": options.text_field, "text": corpus.text or "documents", "report": report}
            for document in read_documents(spans, counts, **given):
                if len(sample) < SAMPLE_SENTENCES:
                    sample.extend(document)
                yield from zip(cycle(languages), document, strict=False)


if __name__ == "__main__":
    run(main, Options)
