"""The page of the real server: what it shows of a model of each kind is what the server answers, and nothing breaks."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import MISSING, Browser, browser, wait
from kind_files import CONFIG, SPECIALS, TAGS, WORDS, write
from test_exporting import run_of

from conversion.writers import write_ours
from ground.tensors import named_variables
from modeling import PretrainingModel
from modeling.config import Config
from serving.limits import Limits
from serving.metrics import Metrics
from serving.models import Models, open_model
from serving.server import LOOPBACK_NAMES, Serving, listen
from tasks.datasets import find_row

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
DECODER = {
    "family": "palm",
    "type_vocab_size": 3,
    "final_layer_norm": True,
    "ln_type": "preln",
    "num_decoder_layers": 1,
}
ROWS = {
    "lcqmc": {},
    "chnsenticorp": {},
    "sts_b": {},
    "tags": {},
    "cluener": {},
    "squad": {},
    "copa": {},
    "lcqmc_matching": {},
    "text_to_text": {**DECODER, "hidden_act": "gelu_erf", "copy": "attention"},
}
"""A row of each kind, with what its model has of its own."""
READY = "return document.querySelector('#notes:not([hidden])') && !document.querySelector('#run').disabled"
TYPED = {"question": "c d", "context": "a b c d e f", "choices": "a\nb c", "text_a": "a b c", "text_b": "d e"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Write a run of random weights for each row, and a pretrained model."""
    folder = tmp_path_factory.mktemp("models")
    rows = write(folder / "rows.toml", TAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "test_exporting.find_row", lambda name: find_row(name, rows) if name == "tags" else find_row(name)
        )
        for name, config in ROWS.items():
            run_of(name, folder / name, **config)
    vocabulary = write(folder / "vocab.txt", "\n".join([*SPECIALS, *WORDS]) + "\n")
    weights = named_variables(PretrainingModel(config := Config(**CONFIG)))
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    write_ours(folder / "pretrained", config, arrays, [vocabulary])
    return {name: str(folder / name) for name in [*ROWS, "pretrained"]}


@pytest.fixture(scope="module")
def address(paths: dict[str, str]) -> Iterator[str]:
    """Yield the address of a server of all models."""
    metrics, limits = Metrics(), Limits(texts=4)
    models = Models(paths, open_model, sizes=(), budget_tokens=512, metrics=metrics)
    serving = Serving(models, limits, metrics, hosts=LOOPBACK_NAMES)
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=serving.run, args=(listening,))
        thread.start()
        try:
            wait(lambda: models.ready, "the models are loaded", 120)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            serving.stop()
            thread.join()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Browser]:
    with browser() as window:
        window.size(1200, 900)
        window.open(address)
        window.wait("return document.querySelectorAll('#model option').length")
        yield window


def asked(address: str, name: str, body: dict[str, Any]) -> Any:
    """Return what the server answers without the page."""
    request = urllib.request.Request(f"{address}/v1/models/{name}:predict", json.dumps(body).encode())
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def run(page: Browser, name: str) -> tuple[Any, Any]:
    """Type into every box of a model and run it; return what was asked, and the reply as the page got it."""
    choose = "const m = document.querySelector('#model'); m.value = arguments[0]; m.dispatchEvent(new Event('change'))"
    page.run(choose, name)
    boxes = page.run("return [...document.querySelectorAll('#fields textarea')].map((box) => box.name)")
    assert boxes
    for box in boxes:
        page.type(f"[name={box}]", TYPED[box] if name != "pretrained" else "a [MASK] c")
    page.click("#run")
    page.wait(READY)
    given = {box: TYPED[box].split("\n") if box == "choices" else TYPED[box] for box in boxes}
    page.run("document.querySelector('details').open = true")
    return given if name != "pretrained" else {"text_a": "a [MASK] c"}, json.loads(page.text("pre"))


def shown(answer: dict[str, Any]) -> list[str]:
    """Return texts that a person has to see of an answer."""
    match answer:
        case {"entities": entities}:
            return [each["text"] for each in entities]
        case {"masks": masks}:
            return [each["token"] for mask in masks for each in mask]
        case {"answer": text, "n_best": candidates}:
            return [text, *(each["answer"] for each in candidates)]
        case {"prediction": list() as labels, "probabilities": chances}:
            return [*labels, *chances]
        case {"probabilities": dict() as chances}:
            return [*chances]
        case {"choice": choice}:
            return [choice]
        case {"cosine": cosine}:
            return [f"{cosine:.4f}"]
        case {"score": score} if "generated" not in answer:
            return [f"{score:.4f}".rstrip("0")]
        case {"generated": text}:
            return [text]
    raise AssertionError(answer)


@pytest.mark.parametrize("name", [*ROWS, "pretrained"])
def test_the_page_shows_what_the_server_answers(name: str, page: Browser, address: str):
    given, reply = run(page, name)
    (found,) = reply["predictions"]
    direct = asked(address, name, {"instances": [given], "parameters": {}})
    assert direct["predictions"] == [found]
    assert reply["timing_ms"].keys() == {"queue", "tokenize", "compute"}
    visible = page.text("#result")
    assert [text for text in shown(found) if text not in visible] == []
    assert len(page.texts(".time .legend li")) == 4
    if name == "tags":
        assert page.text(".slider output") == "0.40"
    if "tokens" in reply:
        most = 32 if name == "pretrained" else 16
        assert page.texts("#notes > .quiet")[0] == f"{direct['tokens'][0]} of {most} tokens"
    assert page.messages() == []


def test_a_text_has_no_more_tokens_than_are_asked_for(page: Browser, address: str):
    _, long = run(page, "text_to_text")
    page.type("[name=max_new_tokens]", "1")
    page.click("#run")
    page.wait(
        "return JSON.parse(document.querySelector('pre').textContent).predictions[0].generated !== arguments[0]",
        long["predictions"][0]["generated"],
    )
    shorter = page.text("#result .large")
    assert len(shorter.split()) <= 1
    with urllib.request.urlopen(f"{address}/info") as reply:
        bounds = json.load(reply)["models"]["text_to_text"]["parameters"]["max_new_tokens"]
    page.type("[name=max_new_tokens]", str(bounds["maximum"] + 1))
    page.click("#run")
    page.wait("return !document.querySelector('#wrong-max_new_tokens').hidden")
    assert f"expected 1 to {bounds['maximum']} tokens" in page.text("#wrong-max_new_tokens")
    assert all("422" in each for each in page.messages())
    with pytest.raises(urllib.error.HTTPError, match="422"):
        asked(address, "lcqmc", {"instances": [["a", "b"]], "parameters": {"max_new_tokens": 3}})


def test_examples_of_the_server_can_be_asked(page: Browser):
    names = page.run("return [...document.querySelectorAll('#model option')].map((option) => option.value)")
    assert names == [*ROWS, "pretrained"]
    for name in names:
        page.run(
            "const m = document.querySelector('#model'); m.value = arguments[0]; m.dispatchEvent(new Event('change'))",
            name,
        )
        masked = [text for text in page.texts(".example") if "[MASK]" in text]
        assert bool(masked) is (name == "pretrained")
        page.click(".example")
        page.wait(READY)
    assert page.messages() == []


def test_many_lines_go_in_requests_that_the_server_takes(page: Browser):
    page.run(
        "const m = document.querySelector('#model'); m.value = 'chnsenticorp'; m.dispatchEvent(new Event('change'))"
    )
    page.click("#modes button:nth-child(2)")
    page.type("[name=lines]", "\n".join("abcdefg"))
    page.click("#run")
    page.wait(READY)
    assert page.texts("#result tbody td:nth-child(2)") == [*"abcdefg"]
    assert page.messages() == []


def test_a_text_that_is_cut_is_said_to_be(page: Browser):
    page.click("#modes button:nth-child(1)")
    page.type("[name=text_a]", "a " * 40)
    page.click("#run")
    page.wait(READY)
    assert page.text("#notes > .note").startswith("Cut: the text is longer than the 16 tokens")


def test_what_the_server_refuses_stands_beside_the_box(page: Browser):
    page.type("[name=text_a]", "a", clear=True)
    page.run("document.querySelector('[name=text_a]').value = 'a'.repeat(20001)")
    page.click("#run")
    page.wait("return !document.querySelector('#wrong-text_a').hidden")
    assert "at most 20,000" in page.text("#wrong-text_a")
    assert all("422" in each for each in page.messages())


def test_every_file_of_the_page_comes_with_the_policy(address: str):
    files = (Path(__file__).resolve().parents[2] / "serving/page").iterdir()
    for path in ["", *(file.name for file in files if file.name != "index.html")]:
        with urllib.request.urlopen(f"{address}/{path}") as reply:
            policy = reply.headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy, path
            assert "unsafe" not in policy, path
