"""Measures answers over HTTP by this server and by a plain one of transformers and FastAPI, on the loopback.

python3 -m benchmarks.serving writes its results to benchmarks/results. The model is a classifier of random weights, the
same in every contender; texts are characters of its vocabulary, all of one length or of many. Clients are threads that
keep their connection and ask again as soon as they have an answer. Contenders take turns, and each has every core. The
plain server is what one writes in an evening: a function of FastAPI that tokenises, pads to the longest of the request
and asks the model; its int8 is PyTorch's dynamic quantisation of the linear layers.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import ROOT, Contender, answer_turns, contender, environment, flags_of, installed
from commands.flags import UsageError, flag, run
from ground.files import write_atomically

OURS = {"run": "run", "onnx": "onnx/model.onnx", "onnx_int8": "onnx/model_int8.onnx"}
PEERS = {"transformers": "", "transformers_int8": ""}
PACKAGES = {"run": "tensorflow", **dict.fromkeys(("onnx", "onnx_int8"), "onnxruntime")}
PACKAGES |= dict.fromkeys(PEERS, "transformers")
PEER_OF = {"run": "transformers", "onnx": "transformers", "onnx_int8": "transformers_int8"}
LENGTHS = {"128": "all of 128 tokens", "mixed": "from 4 to 128 tokens, a median of 24"}
MAX_SEQ_LENGTH, SPECIALS = 128, 2
COMPARED = 32
_MEDIAN, _SPREAD, _LEAST = 24, 0.9, 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure answers over HTTP of this server and of a plain one, side by side."""

    config_file: str = flag("albert_config/bert_config.json", help="shape of the classifier")
    contenders: tuple[str, ...] = flag(tuple(PACKAGES), help=f"some of {', '.join(PACKAGES)}")
    lengths: tuple[str, ...] = flag(tuple(LENGTHS), help=f"some of {', '.join(LENGTHS)}")
    clients: tuple[int, ...] = flag((1, 8, 64), help="that ask at once", minimum=1)
    texts: tuple[int, ...] = flag((1, 32), help="of a request", minimum=1)
    seconds: float = flag(20.0, help="of a turn, at least; those who wait then still have their answers", minimum=0)
    rounds: int = flag(3, help="turns of each contender", minimum=1)
    threads: int = flag(0, help="of each contender; 0: as many as cores", minimum=0)
    results: str = flag("benchmarks/results/serving", help="where to write, without .json and .md")
    measure: str | None = flag(None, help="internal: the contender of this process, or prepare")
    folder: str | None = flag(None, help="internal: of the models")


def main(options: Options) -> int:
    """Measures all, prints the table and writes it."""
    check(options)
    if options.measure:
        begin = time.perf_counter()
        folder = Path(str(options.folder))
        if options.measure == "prepare":
            answer_turns(prepare(options, folder), {})
        else:
            port = (serve_plainly if options.measure in PEERS else serve)(options, folder)
            answer_turns({"port": port, "first_seconds": time.perf_counter() - begin}, {})
        return 0
    names = installed({name: PACKAGES[name] for name in options.contenders})
    options = replace(options, threads=options.threads or len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as scratch:
        found = side_by_side(replace(options, folder=scratch), names)
    result = {"machine": f"{options.threads} cores", "options": vars(options), **found}
    table = as_markdown(result)
    path = ROOT / options.results
    write_atomically(path.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    write_atomically(path.with_suffix(".md"), table + "\n")
    print(table)
    return 0


def check(options: Options) -> None:
    """Raises `UsageError` for names that there are not."""
    for name, given, known in (
        ("contenders", options.contenders, PACKAGES),
        ("lengths", options.lengths, LENGTHS),
        ("measure", [options.measure] if options.measure else [], ("prepare", *PACKAGES)),
    ):
        for value in given:
            if value not in known:
                raise UsageError(f"--{name}={value} is unknown: expected some of {', '.join(known)}")


def cases_of(options: Options) -> list[tuple[str, int, int]]:
    """Return length, texts of a request and clients of every turn; a server holds 256 texts that wait."""
    return [
        (length, texts, clients)
        for length in options.lengths
        for texts in options.texts
        for clients in options.clients
        if texts * clients <= 256
    ]


def side_by_side(options: Options, names: Sequence[str]) -> dict[str, Any]:
    """Measures every contender in turns; returns rows of the table, and how far answers are from the plain server's."""
    surrounding = environment("tensorflow", options.threads)

    def started(name: str) -> contextlib.AbstractContextManager[Contender]:
        return contender(name, "benchmarks.serving", flags_of(options, measure=name), surrounding)

    with started("prepare") as prepared:
        if "error" in prepared.known:
            raise UsageError(f"the models cannot be made: {prepared.known['error']}")
        characters = prepared.known["characters"]
    with contextlib.ExitStack() as stack:
        running = [each for each in (stack.enter_context(started(name)) for name in names) if "error" not in each.known]
        rows = []
        for length, texts, clients in cases_of(options):
            turns: dict[str, list[dict[str, Any]]] = {each.name: [] for each in running}
            requests = requests_of(characters, length, texts)
            for _ in range(options.rounds):
                for each in running:
                    turns[each.name].append(turn(each, requests, clients, options.seconds))
            case = {"length": length, "texts": texts, "clients": clients}
            rows += [{**case, "contender": name, **together(found)} for name, found in turns.items()]
        answers = {each.name: compared(each, characters) for each in running}
        memory = {each.name: each.ask("memory")["peak_bytes"] for each in running}
    return {"rows": rows, "differences": differences(answers), "peak_bytes": memory}


def requests_of(characters: str, length: str, texts: int, count: int = 256) -> list[bytes]:
    """Return bodies of requests of random texts."""
    import numpy as np

    generator = np.random.default_rng(3)
    lengths = np.full((count, texts), MAX_SEQ_LENGTH - SPECIALS)
    if length == "mixed":
        drawn = np.exp(generator.normal(np.log(_MEDIAN), _SPREAD, (count, texts)))
        lengths = np.clip(drawn, _LEAST, MAX_SEQ_LENGTH - SPECIALS).astype(np.int64)
    letters = np.array(list(characters))
    bodies = ([{"text_a": "".join(generator.choice(letters, size))} for size in row] for row in lengths)
    return [json.dumps({"instances": each}, ensure_ascii=False).encode() for each in bodies]


def turn(each: Contender, requests: Sequence[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Let clients ask for some seconds; return each request's milliseconds, and how long it took in all."""
    taken, failed = list[list[float]](), list[str]()
    end = [float("inf")]
    together = threading.Barrier(clients + 1)

    def ask_on(first: int) -> None:
        own: list[float] = []
        taken.append(own)
        with connected(each) as connection:
            for number in itertools.count(first, clients):
                begin = time.perf_counter()
                try:
                    answered(connection, requests[number % len(requests)])
                except (OSError, ValueError, http.client.HTTPException) as error:
                    failed.append(str(error))
                if number == first:
                    together.wait()  # the first answer is not counted
                    connection.close()  # a server ends one on which nobody asks for seconds; the next request opens it
                else:
                    own.append(1000 * (time.perf_counter() - begin))
                if failed or time.perf_counter() >= end[0]:
                    return

    threads = [threading.Thread(target=ask_on, args=(first,)) for first in range(clients)]
    for thread in threads:
        thread.start()
    together.wait()
    begin = time.perf_counter()
    end[0] = begin + seconds
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    return {"milliseconds": sorted(itertools.chain.from_iterable(taken)), "seconds": took, "failed": failed}


def connected(each: Contender) -> contextlib.closing[http.client.HTTPConnection]:
    """Return a connection to a contender that is closed at the end."""
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", each.known["port"], timeout=600))


def answered(connection: http.client.HTTPConnection, body: bytes) -> list[dict[str, Any]]:
    """Return the predictions of one request; raises `ValueError` where there are none."""
    connection.request("POST", "/v1/models/m:predict", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    content = json.loads(reply.read())
    if reply.status != 200:
        raise ValueError(f"{reply.status} {content}")
    return content["predictions"]


def together(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return requests a second, the median of turns, and percentiles of all requests."""
    rates = [len(each["milliseconds"]) / each["seconds"] for each in turns]
    all_of_them = sorted(itertools.chain.from_iterable(each["milliseconds"] for each in turns))
    shares = (0.5, 0.95, 0.99)
    places = [min(int(share * len(all_of_them)), len(all_of_them) - 1) for share in shares]
    return {
        "requests_per_second": statistics.median(rates),
        "requests_per_second_range": [min(rates), max(rates)],
        "percentiles_ms": [all_of_them[place] for place in places] if all_of_them else [],
        "requests": len(all_of_them),
        "failed": sum(len(each["failed"]) for each in turns),
    }


def compared(each: Contender, characters: str) -> list[list[float]]:
    """Return the probabilities that a contender gives the same few texts."""
    found = []
    for body in requests_of(characters, "mixed", 1, COMPARED):
        with connected(each) as connection:
            found += [[*told["probabilities"].values()] for told in answered(connection, body)]
    return found


def differences(answers: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, dict[str, float]]:
    """Return how far each contender's probabilities are from the plain server's, and how many labels are its own."""
    wanted = answers.get("transformers")
    found = {}
    for name, given in answers.items() if wanted is not None else ():
        pairs = list(zip(given, wanted or (), strict=True))
        apart = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
        same = sum((one[0] > one[1]) == (other[0] > other[1]) for one, other in pairs) / len(pairs)
        found[name] = {"largest": apart, "same_label": same}
    return found


# -- in a process of its own -------------------------------------------------------------------------------------------


def prepare(options: Options, folder: Path) -> dict[str, Any]:
    """Write the classifier as a run, as ONNX with its twin of 8 bits, and for transformers."""
    import numpy as np

    from conversion.writers import write_ours, write_transformers
    from data.tokenizers import load_tokenizer
    from ground.tensors import named_variables
    from modeling import load_config
    from serving.formats import export
    from serving.loading import load
    from tasks.datasets import find_row
    from tasks.run_file import RunFile, describe_tokenizer

    vocabulary, row = ROOT / "albert_config/vocab.txt", find_row("chnsenticorp")
    tokenizer, config = load_tokenizer(vocab_file=vocabulary), load_config(ROOT / options.config_file)
    target = folder / "run"
    target.mkdir()
    described = describe_tokenizer(tokenizer, target, do_lower_case=True, max_seq_length=MAX_SEQ_LENGTH)
    content = RunFile(kind=row.kind, config=config, computation={}, tokenizer=described, row=row)
    content.write(target)
    tensors = {name: np.asarray(value) for name, value in named_variables(content.task().build_model()).items()}
    write_ours(target / "best", config, tensors)
    write_transformers(folder / "transformers", config, tensors, [vocabulary], labels=row.labels, kind=row.kind)
    if any("onnx" in name for name in options.contenders):
        export(load(target, dtype="float32"), folder / "onnx", "onnx", int8=True)
    tokens = tokenizer.tokens(list(range(tokenizer.vocab_size)))
    return {"characters": "".join(token for token in tokens if len(token) == 1 and "\u4e00" <= token <= "\u9fff")}


def serve(options: Options, folder: Path) -> int:
    """Serve as serve.py does, in a thread; return the port once it is ready."""
    from serving.limits import Limits
    from serving.metrics import Metrics
    from serving.models import Models, open_model
    from serving.server import LOOPBACK_NAMES, Serving, listen

    limits, metrics = Limits(deadline_seconds=600.0), Metrics()
    sizes = [1 << n for n in range(limits.batch_rows.bit_length())]
    models = Models(
        {"m": str(folder / OURS[str(options.measure)])},
        lambda path: open_model(path, options.threads),
        sizes=sizes,
        budget_tokens=limits.batch_tokens,
        metrics=metrics,
    )
    listening = listen("127.0.0.1", 0)
    serving = Serving(models, limits, metrics, hosts=LOOPBACK_NAMES)
    threading.Thread(target=serving.run, args=(listening,), daemon=True).start()
    return until(lambda: models.ready, listening.getsockname()[1])


def serve_plainly(options: Options, folder: Path) -> int:
    """Serve the same model by transformers and FastAPI, in a thread; return the port."""
    import fastapi
    import torch
    import transformers
    import uvicorn

    torch.set_num_threads(options.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "transformers")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "transformers").eval()
    if options.measure == "transformers_int8":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
    labels = list(model.config.id2label.values())
    application = fastapi.FastAPI()

    # FastAPI runs a plain function in one of forty threads.
    def predict(asked: dict[str, Any]) -> dict[str, Any]:
        texts = [each["text_a"] for each in asked["instances"]]
        encoded = tokenizer(texts, padding=True, truncation=True, max_length=MAX_SEQ_LENGTH, return_tensors="pt")
        with torch.inference_mode():
            chances = model(**encoded).logits.softmax(-1).tolist()
        return {"predictions": [{"probabilities": dict(zip(labels, each, strict=True))} for each in chances]}

    predict.__annotations__ = {"asked": dict[str, Any], "return": dict[str, Any]}
    application.add_api_route("/v1/models/m:predict", predict, methods=["POST"])
    config = uvicorn.Config(application, port=0, log_config=None, log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    until(lambda: server.started, 0)
    return server.servers[0].sockets[0].getsockname()[1]


def until(ready: Callable[[], bool], value: int) -> int:
    """Return `value` once something is so."""
    while not ready():
        time.sleep(0.01)
    return value


# -- for a person ------------------------------------------------------------------------------------------------------


def as_markdown(result: Mapping[str, Any]) -> str:
    """The results for a person: a table for each length and number of texts, with ratios to the plain server."""
    options, rows = result["options"], result["rows"]
    lines = [
        "# Answers over HTTP",
        "",
        f"{result['machine']}; load average {os.getloadavg()[1]:.1f}. A classifier of the shape "
        f"{options['config_file']}, random weights, {MAX_SEQ_LENGTH} tokens at most. Median of {options['rounds']} "
        f"turns of {options['seconds']:g} s, slowest to fastest in brackets; percentiles of all requests. The ratio is "
        "to transformers and FastAPI in the same precision, in the same run.",
    ]
    for length in dict.fromkeys(row["length"] for row in rows):
        for texts in dict.fromkeys(row["texts"] for row in rows):
            cases = [row for row in rows if (row["length"], row["texts"]) == (length, texts)]
            if cases:
                lines += ["", f"## Texts {LENGTHS[length]}, {texts} a request", ""]
                lines += [
                    "| clients | contender | requests/s | of the plain server | p50 ms | p95 ms | p99 ms | failed |"
                ]
                lines += ["|---|---|---|---|---|---|---|---|", *(line_of(row, cases) for row in cases)]
    lines += ["", "| contender | largest difference of a probability | same label | peak MB |", "|---|---|---|---|"]
    for name, apart in result["differences"].items():
        memory = result["peak_bytes"].get(name, 0) / 1e6
        lines.append(f"| {name} | {apart['largest']:.0e} | {apart['same_label']:.1%} | {memory:,.0f} |")
    return "\n".join(lines)


def line_of(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A row of the table."""
    slowest, fastest = row["requests_per_second_range"]
    rate = row["requests_per_second"]
    peers = [
        each["requests_per_second"]
        for each in rows
        if each["contender"] == PEER_OF.get(row["contender"]) and each["clients"] == row["clients"]
    ]
    ratio = f"{rate / peers[0]:.2f}" if peers and peers[0] else ""
    shown = [f"{each:,.1f}" for each in row["percentiles_ms"]] or ["", "", ""]
    cells = [row["clients"], row["contender"], f"{rate:,.1f} ({slowest:,.1f}-{fastest:,.1f})", ratio, *shown]
    return f"| {' | '.join(map(str, [*cells, row['failed']]))} |"


if __name__ == "__main__":
    run(main, Options)
