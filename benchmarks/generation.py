"""Measures generation beside transformers and CTranslate2 on equal weights: tokens a second, first token, memory.

python3 -m benchmarks.generation writes its results to benchmarks/results. Every contender has a process of its own and
as many threads as the others; it loads the same weights and sources, generates once, and must have generated the tokens
of transformers before anything is measured. Then the contenders take turns. The end token is not allowed, so that all
do the same work. Contenders that are not installed are left out, with a line saying so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.contenders import ROOT, Contender, answer_turns, contender, environment, flags_of, installed
from commands.flags import UsageError, flag, run
from ground.files import write_atomically

MODULE = "benchmarks.generation"
SHAPES: dict[str, dict[str, Any]] = {
    "base": {"vocab_size": 21128, "hidden_size": 768, "intermediate_size": 3072, "layers": 12, "heads": 12},
    "small": {"vocab_size": 21128, "hidden_size": 256, "intermediate_size": 1024, "layers": 4, "heads": 4},
    "tiny": {"vocab_size": 211, "hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 2},
}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam5": {"num_beams": 5, "early_stopping": True},
    "sampling": {"do_sample": True, "top_k": 50, "top_p": 0.95},
}
CONTENDERS = ("tensorflow", "jax", "transformers", "transformers_static", "ctranslate2", "ctranslate2_int8")
OURS = CONTENDERS[:2]
PEERS = CONTENDERS[2:4]
PADDING, START, END = 0, 101, 102

Generate = Callable[[int], list[list[int]]]
"""Most tokens -> the tokens of every source."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure generation of this project, of transformers and of CTranslate2, side by side."""

    shapes: tuple[str, ...] = flag(("base", "small"), help=f"some of {', '.join(SHAPES)}")
    ways: tuple[str, ...] = flag(tuple(WAYS), help=f"some of {', '.join(WAYS)}")
    batch_sizes: tuple[int, ...] = flag((1, 16), help="sources side by side", unit="sources")
    contenders: tuple[str, ...] = flag(CONTENDERS, help=f"some of {', '.join(CONTENDERS)}")
    source_length: int = flag(128, help="tokens of a source", unit="tokens", minimum=1)
    target_length: int = flag(64, help="generated tokens", unit="tokens", minimum=2)
    rounds: int = flag(5, help="turns of each contender", minimum=1)
    threads: int = flag(0, help="of each contender; 0: as many as cores", minimum=0)
    results: str = flag("benchmarks/results/generation", help="where to write, without .json and .md")
    measure: str | None = flag(None, help="internal: the contender of this process")
    folder: str = flag("", help="internal: weights and sources")


def main(options: Options) -> int:
    """Measures all, prints the table as it grows, and writes it."""
    check(options)
    if options.measure:
        measure(options)
        return 0
    contenders = installed(packages(options.contenders))
    rows, table = list[dict[str, Any]](), ""
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            whole = replace(options, shapes=(shape,), folder=folder)
            command = [sys.executable, "-m", MODULE, *flags_of(whole, measure="prepare")]
            subprocess.run(command, cwd=ROOT, env=environment("tensorflow", threads_of(whole)), check=True)
            for way in options.ways:
                for size in options.batch_sizes:
                    case = replace(whole, ways=(way,), batch_sizes=(size,))
                    rows += side_by_side(case, contenders)
                    machine = f"{len(os.sched_getaffinity(0))} cores, {threads_of(options)} threads"
                    result = {"machine": machine, "options": options_of(options), "rows": rows}
                    table = as_markdown(result)
                    path = ROOT / options.results
                    write_atomically(path.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
                    write_atomically(path.with_suffix(".md"), table + "\n")
    print(table)
    return 0


def check(options: Options) -> None:
    """Raises `UsageError` for an unknown name."""
    for name, given, known in (
        ("shapes", options.shapes, SHAPES),
        ("ways", options.ways, WAYS),
        ("contenders", options.contenders, CONTENDERS),
    ):
        for value in given:
            if value not in known:
                raise UsageError(f"--{name}={value} is unknown: expected some of {', '.join(known)}")


def threads_of(options: Options) -> int:
    """Return the threads of each contender."""
    return options.threads or len(os.sched_getaffinity(0))


def options_of(options: Options) -> dict[str, Any]:
    """The options by name."""
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


def packages(contenders: Sequence[str]) -> dict[str, str]:
    """Return the package that each contender needs."""
    needed = {"transformers": "transformers", "ctranslate2": "ctranslate2"}
    return {each: needed.get(each.split("_")[0], each) for each in contenders}


def backend_of(contender: str) -> str:
    """Return the backend of Keras of a contender's process."""
    return contender if contender in OURS else "tensorflow"


# -- the contenders, seen from the one that compares -------------------------------------------------------------------


def side_by_side(case: Options, contenders: Sequence[str]) -> list[dict[str, Any]]:
    """Measures every contender in turns; those whose tokens are not transformers' have no time."""
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                contender(name, MODULE, flags_of(case, measure=name), environment(backend_of(name), threads_of(case)))
            )
            for name in contenders
        ]
        texts = {each.name: each.known.pop("tokens", None) for each in workers}
        expected = next((texts[name] for name in PEERS if texts.get(name)), None)
        if case.ways[0] != "sampling":
            for each in workers:
                # Rounded weights make other texts.
                if expected and texts[each.name] and not each.name.endswith("int8") and texts[each.name] != expected:
                    each.known = {"error": "other tokens than transformers'"}
        for _ in range(case.rounds):
            for each in workers:
                each.take_turn()
        return [row_of(each, case) for each in workers]


def row_of(worker: Contender, case: Options) -> dict[str, Any]:
    """The result of a contender."""
    row = {"shape": case.shapes[0], "way": case.ways[0], "batch_size": case.batch_sizes[0], "contender": worker.name}
    row |= worker.known
    if worker.answers and "error" not in row:
        tokens = case.batch_sizes[0] * case.target_length
        took = {name: [answer[name] for answer in worker.answers] for name in worker.answers[0]}
        row["seconds"] = statistics.median(took["seconds"])
        row["tokens_per_second"] = tokens / row["seconds"]
        row["best_tokens_per_second"] = tokens / min(took["seconds"])
        row["processor_seconds"] = statistics.median(took["processor_seconds"])
        row["first_token_seconds"] = statistics.median(took["first"])
        row |= worker.ask("memory")
    return row


# -- in a contender's process ------------------------------------------------------------------------------------------


def measure(options: Options) -> None:
    """Prepares weights; or generates once, then answers the lines of stdin."""
    contender, folder = str(options.measure), Path(options.folder)
    if contender == "prepare":
        prepare(options, folder)
        return
    import numpy as np

    ids = np.load(folder / "sources.npy")[: options.batch_sizes[0]]
    kind = contender.split("_")[0]
    maker = {"transformers": torch_generate, "ctranslate2": ctranslate2_generate}.get(kind, our_generate)
    generate = maker(options, folder, ids)
    begin = time.perf_counter()
    tokens = generate(options.target_length)
    once = time.perf_counter() - begin
    generate(1)
    assert all(len(text) == options.target_length for text in tokens), [len(text) for text in tokens]

    def turn() -> dict[str, float]:
        begin, processor = time.perf_counter(), time.process_time()
        generate(options.target_length)
        took = {"seconds": time.perf_counter() - begin, "processor_seconds": time.process_time() - processor}
        begin = time.perf_counter()
        generate(1)
        return {**took, "first": time.perf_counter() - begin}

    answer_turns({"tokens": tokens, "first_call_seconds": once}, {"turn": turn})


def our_model(shape: str) -> Any:
    """The Chinese PALM graph of this size, its values decided by their names."""
    from generation.language_model import Generative
    from generation.model import Tokens
    from modeling import Config, LanguageModel
    from modeling.heads import NextTokenHead

    values = dict(SHAPES[shape])
    layers, heads = values.pop("layers"), values.pop("heads")
    config = Config(
        family="palm",
        num_hidden_layers=layers,
        num_decoder_layers=layers,
        num_attention_heads=heads,
        hidden_act="gelu_erf",
        max_position_embeddings=512,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        ln_type="preln",
        final_layer_norm=True,
        initializer_range=0.05,
        **values,
    )
    model = Generative(LanguageModel(config, [NextTokenHead]), Tokens(START, END, PADDING))
    # The peers' graphs have one LayerNorm at the end of the encoder.
    model.body.normalizes_twice = False
    return model


def prepare(options: Options, folder: Path) -> None:
    """Write sources, and the weights as transformers and CTranslate2 read them."""
    import numpy as np

    model = our_model(options.shapes[0])
    generator = np.random.default_rng(0)
    shape = (max(options.batch_sizes), options.source_length)
    np.save(folder / "sources.npy", generator.integers(103, model.vocab_size, shape).astype(np.int32))
    if not any(name not in OURS for name in options.contenders) or importlib.util.find_spec("transformers") is None:
        return
    peer = mbart_of(model)
    peer.save_pretrained(folder / "mbart")
    if importlib.util.find_spec("ctranslate2") is not None:
        from ctranslate2.converters.transformers import MBartLoader  # pyright: ignore[reportMissingImports]

        # The converter asks for what MBART's own files say.
        peer.config.normalize_before = peer.config.normalize_embedding = True
        spec = MBartLoader().get_model_spec(peer)
        words = [str(i) for i in range(model.vocab_size)]
        spec.register_source_vocabulary(words)
        spec.register_target_vocabulary(words)
        spec.config.bos_token = spec.config.decoder_start_token = str(START)
        spec.config.eos_token, spec.config.unk_token = str(END), str(PADDING)
        spec.config.add_source_eos = spec.config.add_source_bos = False
        spec.config.layer_norm_epsilon = 1e-5
        spec.validate()
        (folder / "ctranslate2").mkdir()
        spec.save(str(folder / "ctranslate2"))


def our_generate(options: Options, folder: Path, ids: Any) -> Generate:
    """Ours, on the backend of the process."""
    import numpy as np

    from generation.generator import Generator
    from generation.settings import Settings

    values = {"suppress_tokens": (PADDING, END), **WAYS[options.ways[0]]}
    generator = Generator(our_model(options.shapes[0]), Settings(max_new_tokens=options.target_length, **values))
    features = {"input_ids": ids, "input_mask": np.ones_like(ids)}

    def generate(length: int) -> list[list[int]]:
        found = generator(features, limit=np.full(len(ids), length))
        return [list(hypotheses[0].tokens) for hypotheses in found]

    return generate


def torch_generate(options: Options, folder: Path, ids: Any) -> Generate:
    """Transformers, with its dynamic or its static cache."""
    import torch
    import transformers

    torch.set_num_threads(threads_of(options))
    model: Any = transformers.MBartForConditionalGeneration.from_pretrained(folder / "mbart")
    model.eval()
    tensor = torch.from_numpy(ids).long()
    values = {"num_beams": 1, "do_sample": False, **WAYS[options.ways[0]]}
    if options.measure == "transformers_static":
        values["cache_implementation"] = "static"

    def generate(length: int) -> list[list[int]]:
        with torch.inference_mode():
            found = model.generate(
                tensor,
                attention_mask=torch.ones_like(tensor),
                max_new_tokens=length,
                suppress_tokens=[PADDING, END],
                **values,
            )
        return found[:, 1:].tolist()

    return generate


def ctranslate2_generate(options: Options, folder: Path, ids: Any) -> Generate:
    """CTranslate2, in float32 or int8."""
    import ctranslate2  # pyright: ignore[reportMissingImports]

    kind = "int8" if str(options.measure).endswith("int8") else "float32"
    threads = threads_of(options)
    translator = ctranslate2.Translator(
        str(folder / "ctranslate2"), device="cpu", compute_type=kind, intra_threads=threads, inter_threads=1
    )
    rows = [[str(i) for i in row] for row in ids]
    way = WAYS[options.ways[0]]
    values: dict[str, Any] = {"beam_size": way.get("num_beams", 1)}
    if way.get("do_sample"):
        values |= {"sampling_topk": way["top_k"], "sampling_topp": way["top_p"]}

    def generate(length: int) -> list[list[int]]:
        found = translator.translate_batch(
            rows,
            max_decoding_length=length,
            min_decoding_length=length,
            suppress_sequences=[[str(PADDING)]],
            **values,
        )
        return [[int(word) for word in result.hypotheses[0]] for result in found]

    return generate


def mbart_of(model: Any) -> Any:
    """Return transformers' MBART of the same graph and weights: its positions begin at 2, each side has its tables."""
    import numpy as np
    import torch
    import transformers

    from ground.tensors import named_variables, ops

    config = model.model.config
    values = {
        name: np.asarray(ops.convert_to_tensor(variable)) for name, variable in named_variables(model.model).items()
    }
    peer: Any = transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(
            vocab_size=config.vocab_size,
            d_model=config.hidden_size,
            encoder_layers=config.num_hidden_layers,
            decoder_layers=config.num_decoder_layers,
            encoder_attention_heads=config.num_attention_heads,
            decoder_attention_heads=config.num_attention_heads,
            encoder_ffn_dim=config.intermediate_size,
            decoder_ffn_dim=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            activation_function="gelu",
            scale_embedding=False,
            pad_token_id=model.tokens.padding,
            bos_token_id=model.tokens.start,
            eos_token_id=model.tokens.end,
            decoder_start_token_id=model.tokens.start,
            forced_eos_token_id=None,
        )
    )
    state = peer.state_dict()
    ours = "backbone/embeddings"
    positions = values[f"{ours}/position_embeddings"] + values[f"{ours}/token_type_embeddings"][0]
    found = {"model.shared.weight": values[f"{ours}/word_embeddings"]}
    for side in ("encoder", "decoder"):
        found[f"model.{side}.embed_positions.weight"] = np.pad(positions, ((2, 0), (0, 0)))
        found |= layer_norm(f"model.{side}.layernorm_embedding", f"{ours}/layer_norm", values)
        found |= layer_norm(f"model.{side}.layer_norm", f"backbone/{side}/layer_norm", values)
        for i in range(config.num_hidden_layers if side == "encoder" else config.num_decoder_layers):
            found |= block_of(f"model.{side}.layers.{i}", f"backbone/{side}", i, values)
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
        found[name] = found["model.shared.weight"]
    assert {*found, "final_logits_bias"} == {*state}, {*found} ^ {*state}
    peer.load_state_dict({**state, **{name: torch.from_numpy(value) for name, value in found.items()}})
    peer.eval()
    return peer


def layer_norm(theirs: str, ours: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A LayerNorm under transformers' names."""
    return {f"{theirs}.weight": values[f"{ours}/gamma"], f"{theirs}.bias": values[f"{ours}/beta"]}


def block_of(theirs: str, side: str, i: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """A block under transformers' names."""
    found = dict[str, Any]()
    attentions = {"self_attn": f"{side}/attention_{i}"}
    if side.endswith("decoder"):
        attentions["encoder_attn"] = f"{side}/cross_attention_{i}"
    dense = {"fc1": f"{side}/feed_forward_{i}/intermediate", "fc2": f"{side}/feed_forward_{i}/output"}
    for name, ours in attentions.items():
        parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
        dense |= {f"{name}.{part}": f"{ours}/{own}" for part, own in parts.items()}
        found |= layer_norm(f"{theirs}.{name}_layer_norm", f"{ours}/layer_norm", values)
    found |= layer_norm(f"{theirs}.final_layer_norm", f"{side}/feed_forward_{i}/layer_norm", values)
    for name, ours in dense.items():
        found[f"{theirs}.{name}.weight"] = values[f"{ours}/kernel"].T.copy()
        found[f"{theirs}.{name}.bias"] = values[f"{ours}/bias"]
    return found


# -- results -----------------------------------------------------------------------------------------------------------


def as_markdown(result: Mapping[str, Any]) -> str:
    """The results for a person: one table for every shape, way and batch, the fastest first."""
    options = result["options"]
    lines = [
        "# Generation",
        "",
        f"{result['machine']}; load average {os.getloadavg()[1]:.1f}. Median of {options['rounds']} turns, encoder "
        f"included; sources of {options['source_length']} tokens, {options['target_length']} generated. Every "
        "contender but those in int8 had generated transformers' tokens before (not when sampling).",
    ]
    for case in dict.fromkeys((row["shape"], row["way"], row["batch_size"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["shape"], row["way"], row["batch_size"]) == case]
        rows.sort(key=lambda row: row.get("seconds", float("inf")))
        peers = [row["seconds"] for row in rows if row["contender"] in PEERS and "seconds" in row]
        lines += ["", f"## {case[0]}, {case[1]}, batch {case[2]}", ""]
        lines += ["| contender | tokens/s (best) | of transformers | CPU s | first token ms | peak MB | first call s |"]
        lines[-1] += " paid back after |"
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [line_of(row, min(peers, default=None)) for row in rows]
    return "\n".join(lines)


def line_of(row: Mapping[str, Any], peer: float | None) -> str:
    """A row of the table; where the contender failed, why."""
    if "seconds" not in row:
        return f"| {row['contender']} | {row.get('error', 'not measured')} | | | | | | |"
    seconds = row["seconds"]
    ratio = "" if peer is None else f"{peer / seconds:.2f}"
    paid = ""
    if row["contender"] in OURS and peer is not None:
        paid = f"{(row['first_call_seconds'] - seconds) / (peer - seconds):.0f} calls" if peer > seconds else "never"
    return (
        f"| {row['contender']} | {row['tokens_per_second']:,.1f} ({row['best_tokens_per_second']:,.1f}) | {ratio} | "
        f"{row['processor_seconds']:.2f} | {row['first_token_seconds'] * 1e3:,.0f} | {row['peak_bytes'] / 1e6:,.0f} | "
        f"{row['first_call_seconds']:.1f} | {paid} |"
    )


if __name__ == "__main__":
    run(main, Options)
