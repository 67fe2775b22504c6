import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, random_tensors

from conversion.loading import check_fits, load_into
from conversion.parity import our_outputs, random_features
from conversion.readers import read_checkpoint
from conversion.writers import write_ours, write_transformers

CONFIG = CONFIGS["roberta"]
PAD = 1
PAIR = ("sentence_pair/.*",)


def _theirs(architecture: str, **keys: Any) -> Any:
    """A model of transformers with random weights, none of which is an initial value."""
    import torch
    import transformers

    prefix = "XLMRoberta" if architecture.startswith("XLM") else "Roberta"
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shape = {name: getattr(CONFIG, name) for name in names}
    config = getattr(transformers, f"{prefix}Config")(
        **shape,
        **keys,
        hidden_act="gelu",
        layer_norm_eps=CONFIG.layer_norm_eps,
        max_position_embeddings=CONFIG.max_position_embeddings,
        type_vocab_size=1,
        pad_token_id=PAD,
        bos_token_id=0,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def _outputs(model: Any, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    ids, mask = (torch.from_numpy(features[name]).long() for name in ("input_ids", "input_mask"))
    with torch.inference_mode():
        whole = model(input_ids=ids, attention_mask=mask)
        body = model.base_model(input_ids=ids, attention_mask=mask)
    named = {"last hidden state": body.last_hidden_state, "pooled output": body.pooler_output}
    if "logits" in whole:
        named["masked-LM logits" if whole.logits.ndim == 3 else "classifier logits"] = whole.logits
    return {name: value.numpy() for name, value in named.items() if value is not None}


@pytest.mark.parametrize("file", ["folder", "bare"])
@pytest.mark.parametrize(
    ("architecture", "compared"),
    [
        ("RobertaForMaskedLM", {"last hidden state", "masked-LM logits"}),
        ("XLMRobertaForMaskedLM", {"last hidden state", "masked-LM logits"}),
        ("RobertaModel", {"last hidden state", "pooled output"}),
        ("XLMRobertaModel", {"last hidden state", "pooled output"}),
        ("RobertaForSequenceClassification", {"last hidden state", "classifier logits"}),
    ],
)
def test_weights_that_transformers_saved_compute_the_same_here(
    architecture: str, compared: set[str], file: str, tmp_path: Path
):
    import torch

    theirs = _theirs(architecture, num_labels=3)
    if file == "folder":
        theirs.save_pretrained(tmp_path)
    else:
        # The whole state dict, with the tied decoder and index buffers that a saved folder leaves out.
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    # A state dict alone has no config beside it.
    checkpoint = read_checkpoint(tmp_path, config=None if file == "folder" else CONFIG)
    assert checkpoint.config is not None
    rates = {name: getattr(checkpoint.config, name) for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    assert checkpoint.config == dataclasses.replace(CONFIG, **(rates if file == "folder" else {}))
    check_fits(checkpoint)
    features = random_features(CONFIG, pad_id=PAD)
    ours, expected = our_outputs(checkpoint, features), _outputs(theirs, features)
    assert compared <= ours.keys() & expected.keys()
    real_BL = features["input_mask"].astype(bool)
    for name in compared:
        got, value = (side[name][real_BL] if side[name].ndim == 3 else side[name] for side in (ours, expected))
        np.testing.assert_allclose(got, value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("num_labels", [0, 3])
def test_written_and_read_again_is_the_same_model(num_labels: int, tmp_path: Path):
    tensors = random_tensors("roberta", num_labels=num_labels)
    written = write_transformers(tmp_path / "out", CONFIG, tensors, model_type="roberta", allow_dropped=PAIR)
    checkpoint = read_checkpoint(tmp_path / "out")
    assert checkpoint.config == written.config == CONFIG
    assert set(tensors) - set(checkpoint.tensors) == set(written.dropped)
    assert {name.split("/")[0] for name in written.dropped} == (set() if num_labels else {"sentence_pair"})
    for name, value in checkpoint.tensors.items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)


def test_pooler_may_be_new_only_where_nothing_reads_it(tmp_path: Path):
    from modeling import PretrainingModel

    _theirs("RobertaForMaskedLM").save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path, config=CONFIG)
    report = load_into(PretrainingModel(CONFIG, num_pair_labels=0), checkpoint)
    assert report.missing == ["backbone/pooler/bias", "backbone/pooler/kernel"]
    pair = {"sentence_pair/kernel": np.zeros((8, 2), np.float32), "sentence_pair/bias": np.zeros(2, np.float32)}
    with_pair = dataclasses.replace(checkpoint, tensors={**checkpoint.tensors, **pair})
    with pytest.raises(UsageError, match="2 missing, 0 unexpected"):
        load_into(PretrainingModel(CONFIG), with_pair)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of XLM-R's form, two pieces smaller than the vocabulary of the config."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog ate the cat"] * 20),
        model_writer=model,
        vocab_size=CONFIG.vocab_size - 2,
        user_defined_symbols=[f"<extra{i}>" for i in range(12)],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("xlmr") / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    return path


def test_sentencepiece_model_of_xlmr_is_opened_by_the_stock_tokenizer(pieces: Path, tmp_path: Path):
    import sentencepiece
    import transformers

    write_transformers(
        tmp_path / "out", CONFIG, random_tensors("roberta", num_pair_labels=0), [pieces], model_type="roberta"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(pieces))

    def ids(text: str) -> list[int]:
        return [i + 1 if i else 3 for i in processor.encode(text)]

    assert len(tokenizer) == CONFIG.vocab_size
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 31]
    assert tokenizer("the cat")["input_ids"] == [0, *ids("the cat"), 2]
    assert tokenizer("a  dog", "the Zebra")["input_ids"] == [0, *ids("a dog"), 2, 2, *ids("the Zebra"), 2]


def test_vocabulary_that_pads_otherwise_is_refused(pieces: Path, tmp_path: Path):
    """RoBERTa's code counts positions over ids other than 1, which is a token of a WordPiece vocabulary."""
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(28))]) + "\n")
    for path, model_type, message in (
        (words, "roberta", r"vocab.txt: it is of another kind than .* use --model_type=bert"),
        (pieces, "bert", r"sentencepiece.bpe.model: 30 entries, the config says 32"),
    ):
        with pytest.raises(UsageError, match=message):
            write_transformers(
                tmp_path / "out", CONFIG, random_tensors("roberta", num_pair_labels=0), [path], model_type=model_type
            )
    write_ours(tmp_path / "ours", CONFIG, random_tensors("roberta"), [pieces])
    assert (tmp_path / "ours" / pieces.name).read_bytes() == pieces.read_bytes()
