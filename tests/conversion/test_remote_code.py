"""Exports with code of ours: they open without this project, compute the same, write the same text, and come back."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.app import UsageError
from conversion_cases import CONFIGS, all_numbers, random_tensors, shapes
from eager_search import Eager
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversion.lazy import Tensors
from conversion.namings import NAMINGS, transformers_model_type
from conversion.namings.divan import FAMILIES as KNOWN
from conversion.parity import largest_differences, our_model, our_outputs, random_features
from conversion.readers import Checkpoint, read_checkpoint
from conversion.remote import RemoteCode
from conversion.special_tokens import token_ids
from conversion.writers import write_transformers
from generation.generator import Generator, Hypothesis
from generation.language_model import Generative
from generation.model import Tokens
from generation.settings import Settings
from modeling.config import COPYING, Config
from modeling.families import FAMILIES

torch = pytest.importorskip("torch")
DynamicCache = pytest.importorskip("transformers").DynamicCache

CODES = {naming.model_type: naming.code for naming in NAMINGS if naming.code is not None}
OWN = [name for name, config in CONFIGS.items() if transformers_model_type(config) in CODES]
PALMS = [name for name in OWN if CONFIGS[name].num_decoder_layers]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _checkpoint(graph: str, **heads: Any) -> Checkpoint:
    return Checkpoint(random_tensors(graph, **heads), CONFIGS[graph], "ours", Path("memory"))


def _exported(folder: Path, checkpoint: Checkpoint, **arguments: Any) -> Path:
    assert checkpoint.config is not None
    write_transformers(folder, checkpoint.config, checkpoint.tensors, **arguments)
    return folder


def _opened(folder: Path) -> Any:
    """The model of a folder, by the code that it carries a copy of."""
    import importlib

    description = json.loads((folder / "config.json").read_text())
    code = CODES[description["model_type"]]
    assert isinstance(code, RemoteCode)
    module = importlib.import_module(f"conversion.remote_code.{code.modeling}")
    return getattr(module, description["architectures"][0]).from_pretrained(folder).eval()


def _assert_same(got: Checkpoint, tensors: Tensors, config: Config | None) -> None:
    assert got.config == config
    assert (got.skipped, got.unplaced) == ([], [])
    assert got.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(np.asarray(got.tensors[name]), np.asarray(value), err_msg=name)


def test_every_graph_without_a_stock_class_is_a_case():
    assert {"zh_preln", "google_fast", "final_norm", "palm_encoder"} <= set(OWN)
    for family, kinds in {"palm": {*COPYING} - {"legacy_attention"}, "palm_en": {*COPYING}}.items():
        assert {CONFIGS[name].copy for name in PALMS if CONFIGS[name].family == family} == kinds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "heads"),
    [(graph, {"num_pair_labels": 3}) for graph in OWN]
    + [(graph, {"num_labels": 3}) for graph in OWN if CONFIGS[graph].copy == "none"],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_computes_the_same_and_comes_back(graph: str, heads: dict[str, int], tmp_path: Path):
    checkpoint = _checkpoint(graph, **heads)
    folder = _exported(tmp_path / "out", checkpoint)
    _assert_same(read_checkpoint(folder), checkpoint.tensors, checkpoint.config)
    differences = largest_differences(checkpoint, folder)
    expected = {"last hidden state", "hidden states", "pooled output"}
    expected |= {"classifier logits"} if "num_labels" in heads else {"masked-LM logits", "sentence-pair logits"}
    if graph in PALMS and "num_labels" not in heads:
        expected |= {"next-token logits", "greedy tokens"}
    assert differences.keys() == expected
    assert max(differences.values()) < 1e-5, differences


def test_a_wrong_weight_of_the_decoder_is_seen(tmp_path: Path):
    checkpoint = _checkpoint("palm")
    tensors = all_numbers(checkpoint.tensors)
    changed = {n: v.T if "cross_attention_0/value/kernel" in n else v for n, v in tensors.items()}
    differences = largest_differences(
        checkpoint, _exported(tmp_path / "out", dataclasses.replace(checkpoint, tensors=changed))
    )
    assert differences["next-token logits"] > 1e-3
    assert differences["last hidden state"] < 1e-5


CONFIG_STRATEGY = st.builds(
    lambda family, **values: Config(
        **{**values, "embedding_size": values["embedding_size"] if family.startswith("albert") else 0},
        family=family,
        vocab_size=19,
        hidden_size=12,
        intermediate_size=24,
        num_attention_heads=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=16,
        vocab_padding_multiple=8,
    ),
    family=st.sampled_from(KNOWN),
    embedding_size=st.sampled_from([6, 12]),
    hidden_act=st.sampled_from(["gelu", "gelu_erf", "relu", "swish", "tanh", "linear"]),
    layer_norm_eps=st.sampled_from([1e-12, 1e-3]),
    type_vocab_size=st.integers(0, 3),
    ln_type=st.sampled_from(["preln", "postln"]),
    final_layer_norm=st.booleans(),
    num_hidden_layers=st.integers(1, 3),
    sharing=st.sampled_from(["all", "attention", "ffn", "none"]),
    num_hidden_groups=st.integers(1, 2),
    inner_group_num=st.integers(1, 2),
    ffn_groups=st.sampled_from([1, 3]),
    position_offset=st.sampled_from([0, 2]),
)


@pytest.mark.slow
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=CONFIG_STRATEGY, labels=st.sampled_from([0, 2]))
def test_every_encoder_can_be_written(
    config: Config, labels: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(CONFIGS, "drawn", config)
    shapes.cache_clear()
    checkpoint = _checkpoint("drawn", num_labels=labels)
    folder = _exported(tmp_path_factory.mktemp("drawn") / "out", checkpoint, model_type="divan_encoder")
    _assert_same(read_checkpoint(folder), checkpoint.tensors, config)
    differences = largest_differences(checkpoint, folder)
    assert max(differences.values()) < 2e-5, differences


def test_the_code_knows_every_family_or_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from conversion.remote_code.configuration_divan_encoder import PARTICULAR

    assert tuple(PARTICULAR) == KNOWN
    monkeypatch.setitem(FAMILIES, "toy", FAMILIES["bert"])  # pyright: ignore[reportArgumentType]
    config = dataclasses.replace(CONFIGS["bert"], family="toy")
    with pytest.raises(UsageError, match='no graph for the family "toy", only for bert'):
        write_transformers(tmp_path / "out", config, random_tensors("bert"), model_type="divan_encoder")
    with pytest.raises(UsageError, match="has a decoder, which divan_encoder has not"):
        write_transformers(tmp_path / "out", CONFIGS["palm"], random_tensors("palm"), model_type="divan_encoder")
    with pytest.raises(UsageError, match="under PALM's names: it has no decoder"):
        write_transformers(tmp_path / "out", CONFIGS["bert"], random_tensors("bert"), model_type="divan_palm")
    assert list(tmp_path.iterdir()) == []


# -- generation --------------------------------------------------------------------------------------------------------


def _lively(checkpoint: Checkpoint) -> Checkpoint:
    """Weights whose texts change from word to word: signs keep a word from being its own best successor."""
    given = all_numbers(checkpoint.tensors)
    tensors = {n: v * 1.5 if n.endswith(("kernel", "_embeddings")) else v for n, v in given.items()}
    signs = np.resize(np.array([1, -1], np.float32), 8)
    tensors |= {n: v * signs for n, v in tensors.items() if n == "backbone/decoder/layer_norm/gamma"}
    tensors |= {n: v * 0.2 for n, v in tensors.items() if n == "copy/gate/kernel"}
    return dataclasses.replace(checkpoint, tensors=tensors)


def _ours(model: Any, features: dict[str, np.ndarray], end: int, **values: Any) -> list[list[Hypothesis]]:
    tokens = Tokens(start=1, end=end, padding=0)
    return Generator(Generative(model, tokens), Settings(**values, max_new_tokens=7), executor=Eager)(features)


@pytest.mark.slow
@pytest.mark.parametrize("graph", PALMS)
def test_writes_the_text_that_ours_writes(graph: str, tmp_path: Path):
    checkpoint = _lively(_checkpoint(graph, num_pair_labels=0))
    model = _opened(_exported(tmp_path / "out", checkpoint))
    features = {name: value[:, :16] for name, value in random_features(CONFIGS[graph]).items()}
    source = {name: torch.from_numpy(features[name]).long() for name in ("input_ids", "input_mask", "segment_ids")}
    source = dict(zip(("input_ids", "attention_mask", "token_type_ids"), source.values(), strict=True))
    del features["target_ids"]
    # The end token is the word that the first text comes to last.
    ours = our_model(checkpoint)
    text = _ours(ours, features, end=2)[0][0].tokens
    end = max(text, key=text.index)
    ids = {"decoder_start_token_id": 1, "eos_token_id": end, "pad_token_id": 0}
    texts, ended = set(), 0
    for values in ({"num_beams": 1}, {"num_beams": 4, "num_return_sequences": 4}):
        expected = _ours(ours, features, end, **values)
        found = [
            model.generate(
                **source,
                **ids,
                **values,
                max_new_tokens=7,
                do_sample=False,
                use_cache=cached,
                output_scores=True,
                return_dict_in_generate=True,
            )
            for cached in ((True, False) if values["num_beams"] > 1 else (True,))
        ]
        assert found[0].sequences.tolist() == found[-1].sequences.tolist()
        rows = found[0].sequences[:, 1:].reshape(3, values["num_beams"], -1).tolist()
        for b, hypotheses in enumerate(expected):
            for k, hypothesis in enumerate(hypotheses):
                row = rows[b][k]
                assert list(hypothesis.tokens) == (row[: row.index(end)] if end in row else row), (values, b, k)
                texts.add(hypothesis.tokens)
                ended += hypothesis.ended
                if "num_return_sequences" in values:
                    score = float(found[0].sequences_scores.reshape(3, 4)[b, k])
                    assert hypothesis.score == pytest.approx(score, abs=1e-4)
    assert len(texts) >= 4
    assert ended


@pytest.mark.slow
@pytest.mark.parametrize("graph", PALMS)
def test_scores_are_a_distribution_step_by_step(graph: str, tmp_path: Path):
    """In two parts of the target, the second with a cache; and labels give the loss of the same scores."""
    model = _opened(_exported(tmp_path / "out", _checkpoint(graph)))
    features = random_features(CONFIGS[graph])
    ids, mask, target = (torch.from_numpy(features[n]).long() for n in ("input_ids", "input_mask", "target_ids"))
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 5
    target[:, 0], target[1:, -4:] = 1, 5  # of rows 1 and 2 the last four are padding, which no label asks for
    labels = target[:, 1:]
    real = (torch.arange(labels.shape[1]) < labels.shape[1] - 4) | (torch.arange(3) == 0)[:, None]
    with torch.no_grad():
        whole = model(ids, mask, decoder_input_ids=target).logits
        first = model(ids, mask, decoder_input_ids=target[:, :3], use_cache=True)
        encoded = model.get_encoder()(ids, mask)
        rest = model(
            attention_mask=mask,
            decoder_input_ids=target[:, 3:],
            encoder_outputs=encoded,
            past_key_values=first.past_key_values,
        )
        loss = model(ids, mask, labels=labels.masked_fill(~real, -100)).loss
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, atol=1e-5, rtol=0)
    assert whole.shape[-1] == CONFIGS[graph].vocab_size
    with pytest.raises(ValueError, match="past_key_values is a DynamicCache; expected an EncoderDecoderCache"):
        model(ids, mask, decoder_input_ids=target, past_key_values=DynamicCache())
    if CONFIGS[graph].copy != "none":
        torch.testing.assert_close(whole.exp().sum(-1), torch.ones(whole.shape[:2]))
    nll = -whole.log_softmax(-1)[:, :-1].gather(2, labels[..., None])[..., 0]
    torch.testing.assert_close(loss, nll[real].mean(), atol=1e-5, rtol=1e-5)


# -- without this project ----------------------------------------------------------------------------------------------

ALONE = """
import inspect, json, sys
import torch, transformers
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
try:
    import conversion
    sys.exit("this project can be imported")
except ImportError:
    pass
arrays, jobs = {}, json.loads(sys.argv[1])
ids, mask, types, target = (torch.tensor(x) for x in jobs.pop("inputs"))
for name, (folder, auto, text) in jobs.items():
    auto = getattr(transformers, auto)
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    model.save_pretrained(folder + "_again")
    again = auto.from_pretrained(folder + "_again", trust_remote_code=True).eval()
    reads_target = "decoder_input_ids" in inspect.signature(model.forward).parameters
    extra = {"decoder_input_ids": target} if reads_target else {}
    with torch.no_grad():
        found, same = ([m(input_ids=ids, attention_mask=mask, token_type_ids=types, **extra)] for m in (model, again))
    if text:
        found += [model.generate(ids, attention_mask=mask, num_beams=2, do_sample=drawn, max_new_tokens=4,
            decoder_start_token_id=1) for drawn in (False, True)]
    output = found[0]
    key = next(k for k in ("prediction_logits", "logits", "last_hidden_state") if k in output)
    arrays[name] = output[key].tolist()
    assert torch.equal(output[key], same[0][key])
    assert "conversion" not in sys.modules
print(json.dumps(arrays))
"""


@pytest.mark.slow
def test_a_folder_needs_nothing_but_transformers(tmp_path: Path):
    """In another process, whose current folder is another and which does not find this project."""
    jobs: dict[str, Any] = {}
    expected: dict[str, np.ndarray] = {}
    features = random_features(CONFIGS["palm_en_additive"])  # the fewest positions of all
    inputs = [features[name].tolist() for name in ("input_ids", "input_mask", "segment_ids")]
    for name, auto, graph, heads, output in (
        ("pretraining", "AutoModelForPreTraining", "zh_preln", {}, "masked-LM logits"),
        ("masked", "AutoModelForMaskedLM", "google_fast", {"num_pair_labels": 0}, "masked-LM logits"),
        ("classifier", "AutoModelForSequenceClassification", "zh_preln", {"num_labels": 3}, "classifier logits"),
        ("body", "AutoModel", "final_norm", {}, "last hidden state"),
        ("palm", "AutoModelForSeq2SeqLM", "palm", {}, "next-token logits"),
        ("palm_en_copy", "AutoModelForSeq2SeqLM", "palm_en_copy", {}, "next-token logits"),
        ("palm_en_additive", "AutoModelForSeq2SeqLM", "palm_en_additive", {}, "next-token logits"),
        ("palm_classifier", "AutoModelForSequenceClassification", "palm", {"num_labels": 3}, "classifier logits"),
        ("palm_body", "AutoModel", "palm_additive", {}, ""),
    ):
        checkpoint = _checkpoint(graph, **heads)
        jobs[name] = str(_exported(tmp_path / name, checkpoint)), auto, auto == "AutoModelForSeq2SeqLM"
        if output:
            seen = features if graph in PALMS else {n: v for n, v in features.items() if n != "target_ids"}
            expected[name] = our_outputs(checkpoint, seen)[output]
    jobs["inputs"] = [*inputs, features["target_ids"][:, :-1].tolist()]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere)}
    script = [sys.executable, "-I", "-c", ALONE, json.dumps(jobs)]
    done = subprocess.run(script, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == jobs.keys() - {"inputs"}
    mask_BL1 = features["input_mask"][:, :, None]
    for name, value in expected.items():
        gap = np.abs(np.array(found[name]) - value)
        gap = gap * mask_BL1 if gap.ndim == 3 and gap.shape[1] == mask_BL1.shape[1] else gap
        assert gap.max() < 1e-5, name
    for name, graph in (("pretraining", "zh_preln"), ("palm_en_copy", "palm_en_copy"), ("palm", "palm")):
        _assert_same(read_checkpoint(tmp_path / f"{name}_again"), random_tensors(graph), CONFIGS[graph])


# -- what else is in the folder ----------------------------------------------------------------------------------------


def test_the_files_are_those_of_this_project_and_import_nothing_of_it(tmp_path: Path):
    folder = _exported(tmp_path / "out", _checkpoint("zh_preln"))
    code = CODES["divan_encoder"]
    assert code is not None
    assert {path.name for path in folder.glob("*.py")} == set(code.contents())
    description = json.loads((folder / "config.json").read_text())
    files = {target.split(".")[0] for target in description["auto_map"].values()}
    assert {f"{name}.py" for name in files} == set(code.contents())
    assert not (folder / "generation_config.json").exists()
    for name, content in code.contents().items():
        assert (folder / name).read_bytes() == content
    stock = _exported(tmp_path / "stock", _checkpoint("bert"))
    assert not list(stock.glob("*.py"))
    assert "auto_map" not in json.loads((stock / "config.json").read_text())


def test_weights_in_one_file_have_the_code_beside_them(tmp_path: Path):
    import convert_checkpoint
    from conversion.writers import write_ours

    write_ours(tmp_path / "in", CONFIGS["zh_preln"], random_tensors("zh_preln"))
    output = tmp_path / "out" / "weights.bin"
    assert convert_checkpoint.main(convert_checkpoint.Options(input=str(tmp_path / "in"), output=str(output))) == 0
    assert {path.name for path in output.parent.glob("*.py")} == set(CODES["divan_encoder"].contents())  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["[UNK]", "[SEP]", "[PAD]", "[CLS]"], (3, 1, 2)),
        (["[UNK]", "[SEP]", "[PAD]", "a"], None),
    ],
)
def test_token_ids_are_those_of_the_vocabulary(entries: list[str], expected: tuple[int, ...] | None, tmp_path: Path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join([*entries, *(f"[unused{i}]" for i in range(32 - len(entries)))]) + "\n")
    if expected is None:
        vocabulary = None
    folder = _exported(tmp_path / "out", _checkpoint("palm"), vocab_files=[vocabulary] if vocabulary else [])
    path = folder / "generation_config.json"
    if expected is None:  # The vocabulary is too small for the usual ids.
        assert not path.exists()
        return
    ids = json.loads(path.read_text())
    assert (ids["decoder_start_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == expected
    assert ids["suppress_tokens"] == [0, 2, 3]  # all that is no text but the end, as in the search here
    model = _opened(folder)
    assert (model.generation_config.decoder_start_token_id, model.config.pad_token_id) == (3, 2)
    assert (read_checkpoint(folder).config) == CONFIGS["palm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": ["gelu"]}, r"hidden_act is \['gelu'\]; expected one of gelu"),
        ({"hidden_act": "gelu_erf"}, "hidden_act is 'gelu_erf'; expected one of gelu"),
        ({"family": {}}, "family is {}; expected str"),
        ({"family": "berd"}, "family is 'berd'; expected one of bert"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"vocab_size": None}, "vocab_size is None; expected int"),
    ],
)
def test_a_changed_config_is_refused_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path):
    folder = _exported(tmp_path / "out", _checkpoint("zh_preln"))
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(description | changes))
    with pytest.raises(UsageError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize(("offset", "ids"), [(0, (101, 102, 0)), (2, (0, 2, 1))])
def test_token_ids_without_a_vocabulary_are_the_usual_ones(offset: int, ids: tuple[int, ...]):
    found = token_ids(dataclasses.replace(CONFIGS["palm"], vocab_size=200, position_offset=offset), None)
    assert (found["decoder_start_token_id"], found["eos_token_id"], found["pad_token_id"]) == ids


# -- what users of transformers do with it -----------------------------------------------------------------------------


@functools.cache
def _inputs() -> tuple[Any, Any]:
    features = random_features(CONFIGS["zh_preln"])
    return tuple(torch.from_numpy(features[name]).long() for name in ("input_ids", "input_mask"))  # pyright: ignore[reportReturnType]


def test_losses_are_means_over_what_is_labelled(tmp_path: Path):
    ids, mask = _inputs()
    model = _opened(_exported(tmp_path / "pretraining", _checkpoint("zh_preln", num_pair_labels=3)))
    labels = torch.where(torch.arange(ids.shape[1]) % 3 == 0, ids, -100)
    pairs = torch.tensor([0, 2, 1])
    outputs = model(ids, mask, labels=labels, next_sentence_label=pairs)
    words, classes = outputs.prediction_logits.log_softmax(-1), outputs.seq_relationship_logits.log_softmax(-1)
    expected = -words.gather(2, ids[..., None])[:, ::3].mean() - classes[range(3), pairs].mean()
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    assert all(value.grad is not None for value in model.parameters())
    classifier = _opened(_exported(tmp_path / "classifier", _checkpoint("zh_preln", num_labels=3)))
    outputs = classifier(ids, mask, labels=pairs)
    torch.testing.assert_close(outputs.loss, -outputs.logits.log_softmax(-1)[range(3), pairs].mean())


def test_memory_of_the_backward_pass_can_be_saved(tmp_path: Path):
    ids, mask = _inputs()
    for graph in ("zh_preln", "palm"):
        model = _opened(_exported(tmp_path / graph, _checkpoint(graph))).train()
        extra = {"decoder_input_ids": ids} if graph in PALMS else {}
        losses = []
        for saving in (False, True):
            model.zero_grad()
            if saving:
                # Its former name is a warning in new versions.
                enable = getattr(model, "activation_checkpointing_enable", None)
                (enable or model.gradient_checkpointing_enable)()
            output = model(ids, mask, **extra)
            scores = output.logits if graph in PALMS else output.prediction_logits
            scores.logsumexp(-1).sum().backward()
            losses.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
        assert len(losses[0]) == len(losses[1]) > 10
        for plain, saved in zip(*losses, strict=True):
            torch.testing.assert_close(saved, plain)


def test_words_can_be_added_to_an_encoder_and_not_to_palm(tmp_path: Path):
    model = _opened(_exported(tmp_path / "out", _checkpoint("zh_preln")))
    model.resize_token_embeddings(40)
    ids, mask = _inputs()
    assert model(ids.clamp(max=39) + 1, mask).prediction_logits.shape[-1] == 40
    model.save_pretrained(tmp_path / "again")
    config = read_checkpoint(tmp_path / "again").config
    assert config == dataclasses.replace(CONFIGS["zh_preln"], vocab_size=40)
    with pytest.raises(NotImplementedError, match="fixed size"):
        _opened(_exported(tmp_path / "palm", _checkpoint("palm"))).resize_token_embeddings(40)


@pytest.mark.parametrize("graph", ["zh_preln", "palm", "palm_en"])
def test_too_long_a_text_is_said(graph: str, tmp_path: Path):
    model = _opened(_exported(tmp_path / "out", _checkpoint(graph)))
    extra = {"decoder_input_ids": torch.zeros(1, 1, dtype=torch.long)} if graph in PALMS else {}
    with pytest.raises(ValueError, match="tokens, but this model has 24 positions"):
        model(torch.zeros(1, 25, dtype=torch.long), **extra)
