"""Shows ALBERT's three changes to BERT in numbers (Lan et al. 2020, section 3), like albert_zh's script of this name.

Counts come from the variables the models declare, the pairs from the shipped text; every number is checked against
arithmetic or against the text, and a check that fails stops the script.
"""

import math
import os
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent / "data" / "samples" / "zh"
VOCAB, EMBEDDING, HIDDEN, INTERMEDIATE, LAYERS = 30_000, 128, 1_024, 3_072, 12
MAX_TOKENS = 125  # of text; with [CLS] and two [SEP]s 128


def check(holds: bool, claim: str) -> None:
    """Stop unless the claim holds; unlike assert, also under python -O."""
    if not holds:
        raise SystemExit(f"FAILED: {claim}")


def parameters(prefix: str, **changes: object) -> int:
    """Parameters below `prefix` of the model of the demonstration's size with `changes`; nothing is allocated."""
    from modeling import Config, PretrainingModel, variable_shapes

    fields = {
        "family": "albert_zh",
        "vocab_size": VOCAB,
        "embedding_size": EMBEDDING,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 16,
        "intermediate_size": INTERMEDIATE,
        "sharing": "all",
    }
    shapes = variable_shapes(lambda: PretrainingModel(Config(**{**fields, **changes})))  # pyright: ignore[reportArgumentType]
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix))


def factorised_embedding() -> None:
    """Change 1: the word table is a product [V, E] x [E, H]."""
    word, projection = "backbone/embeddings/word_embeddings", "backbone/embeddings/projection"
    whole = parameters(word, embedding_size=HIDDEN)
    factorised = parameters(word) + parameters(projection)
    print("1. Factorised embedding")
    print(f"   V x H         = {VOCAB:,} x {HIDDEN:,} = {whole:,}")
    print(f"   V x E + E x H = {VOCAB:,} x {EMBEDDING:,} + {EMBEDDING:,} x {HIDDEN:,} = {factorised:,}")
    print(f"   {whole / factorised:.1f} times fewer")
    check(whole == VOCAB * HIDDEN == 30_720_000, "the whole table has V x H parameters")
    check(factorised == VOCAB * EMBEDDING + EMBEDDING * HIDDEN == 3_971_072, "the factors have V x E + E x H")


def shared_layers() -> None:
    """Change 2: all layers are the same layer."""
    totals = {
        sharing: parameters("backbone/encoder/", sharing=sharing) for sharing in ("none", "attention", "ffn", "all")
    }
    attention = 4 * (HIDDEN * HIDDEN + HIDDEN) + 2 * HIDDEN
    feed_forward = 2 * HIDDEN * INTERMEDIATE + INTERMEDIATE + HIDDEN + 2 * HIDDEN
    print(f"2. Shared layers ({LAYERS} layers, H {HIDDEN:,}, I {INTERMEDIATE:,})")
    for sharing, total in totals.items():
        print(f"   shared: {sharing:<9} {total:>11,}")
    print(f"   {totals['none'] / totals['all']:.1f} times fewer, and just as much computation")
    check(totals["none"] == LAYERS * (attention + feed_forward) == 125_976_576, "12 layers of their own")
    check(totals["all"] == attention + feed_forward == 10_498_048, "one layer, used 12 times")
    check(totals["attention"] == attention + LAYERS * feed_forward, "one attention, 12 feed-forwards")
    check(totals["ffn"] == LAYERS * attention + feed_forward, "12 attentions, one feed-forward")


def sentence_order() -> None:
    """Change 3: is the pair of segments in its natural order, or swapped? A token here is a character."""
    import numpy as np

    from data.corpus import read_documents
    from data.pairing import PAIRINGS, Block, chunk_and_pair

    documents = [document for document in read_documents(sorted(SAMPLES.glob("*.txt"))) if len(document) > 1]
    text = "".join(sentence for document in documents for sentence in document)
    lengths = [len(sentence) for document in documents for sentence in document]
    ends = np.cumsum([len(document) for document in documents])
    block = Block(
        sentences=np.concatenate([[0], np.cumsum(lengths)]),
        begin=np.concatenate([[0], ends[:-1]]),
        end=ends,
    )
    pairs = chunk_and_pair(
        block, PAIRINGS["sop"], num_passes=1, max_tokens=MAX_TOKENS, short_seq_prob=0.1, random=np.random.default_rng(0)
    )
    swapped = pairs.label == 1
    print(f"3. Sentence order ({len(documents)} documents, {len(lengths):,} sentences)")
    print(f"   {len(pairs):,} pairs, {swapped.sum():,} of them swapped ({swapped.mean():.0%})")
    for label, name in ((0, "natural"), (1, "swapped")):
        example = int(np.flatnonzero(pairs.label == label)[0])
        first, second = (
            text[start : start + min(length, 18)]
            for start, length in (
                (pairs.first_start[example], pairs.first_length[example]),
                (pairs.second_start[example], pairs.second_length[example]),
            )
        )
        print(f"   {label} {name}: [CLS] {first}... [SEP] {second}... [SEP]")
    earlier = np.where(swapped, pairs.second_start + pairs.second_length, pairs.first_start + pairs.first_length)
    later = np.where(swapped, pairs.first_start, pairs.second_start)
    check(bool((earlier == later).all()), "the label says which segment continues the other in the text")
    check(pairs.first_length.sum() + pairs.second_length.sum() == len(text), "every character is in one pair")
    deviation = 0.5 / math.sqrt(len(pairs))
    check(abs(swapped.mean() - 0.5) < 4 * deviation, "half of the pairs are swapped, within four deviations")


def main() -> None:
    """Show all three."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    factorised_embedding()
    shared_layers()
    sentence_order()
    print("All numbers hold.")


if __name__ == "__main__":
    main()
