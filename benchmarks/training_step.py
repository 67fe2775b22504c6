"""Measures a training step beside transformers on PyTorch: tokens a second, peak memory, model FLOP utilisation.

python3 -m benchmarks.training_step writes its results to benchmarks/results. Both sides do the same work: masked
tokens at the same positions and the sentence pair, the same graph, AdamW with decay and clipping, the same batches.
Every contender has a process of its own, warms up there, and then they take turns, so that whatever else the machine
does falls on all of them. Engines and peers that are not installed are left out, with a line saying so.

What a step costs beyond its arithmetic is measured between two objectives of one stack:

    python3 -m benchmarks.training_step --models=veco_tiny --objectives=masked_lm,veco --peers= --precision=float32 \
        --results=benchmarks/results/training_step_veco
    python3 -m benchmarks.training_step --models=ernie_m_tiny --objectives=btmlm,btmlm_cached --lengths=64 \
        --batch_sizes=16 --peers= --engines=tensorflow --precision=float32 --rounds=7 --seconds=1 --results=/tmp/written
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.flags import UsageError, flag, run
from ground.files import write_atomically

if TYPE_CHECKING:
    import numpy as np

    from modeling.config import Config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    "albert_base": "albert_config/albert_config_base_google_en.json",
    "bert_base": "albert_config/bert_config_base_en.json",
    "bert_large": "albert_config/bert_config_large_en.json",
    "veco_tiny": "albert_config/veco_tiny.json",
    "veco_small": "albert_config/veco_small.json",
    "ernie_m_tiny": "albert_config/ernie_m_tiny.json",
    "ernie_m_base": "albert_config/ernie_m_base.json",
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is learnt in a step.

    Attributes:
        title: what it is, for the table.
        objective: key of `data.objectives.OBJECTIVES`.
        of_family: that key for families that have another.
        changes: fields of the config that it needs.
        across: fields of `tasks.across.Across` that it needs.
        pseudo: where pseudo sentences are written: "in the step", or "before" it.
        texts: of an example. All batches of a case have as many texts, so that all see as many tokens.
        peers: whether transformers does the same.
        beside: the work of the same stack that it is compared with by arithmetic.
    """

    title: str
    objective: str
    of_family: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    across: Mapping[str, Any] = field(default_factory=dict)
    pseudo: str = ""
    texts: int = 1
    peers: bool = False
    beside: str = ""

    def objective_of(self, config: Config) -> str:
        """Return the objective for a model."""
        return self.of_family.get(config.family, self.objective)


WORKS: Mapping[str, Work] = {
    "pair": Work(title="masked tokens and sentence pair", objective="bert", of_family={"albert": "albert"}, peers=True),
    "masked_lm": Work(title="masked tokens", objective="masked_lm", changes={"cross_attention": False}),
    "veco": Work(
        title="masked tokens of two texts, alone and across",
        objective="veco",
        changes={"cross_attention": True},
        texts=2,
        beside="masked_lm",
    ),
    "camlm": Work(title="masked tokens of two texts, from one another", objective="camlm", texts=2, beside="masked_lm"),
    "camlm_dense": Work(
        title="the same in one row of both",
        objective="camlm",
        across={"computation": "dense"},
        texts=2,
        beside="masked_lm",
    ),
    "btmlm": Work(
        title="masked tokens beside pseudo sentences", objective="btmlm", pseudo="in the step", beside="masked_lm"
    ),
    "btmlm_cached": Work(title="the same, written before", objective="btmlm", pseudo="before", beside="masked_lm"),
}
MOST_BEYOND_ARITHMETIC = 1.15
"""What a step with a `beside` may cost: its seconds against that one's, over its operations against that one's."""
# The step of a model in which nothing takes time is what a step costs on top of its work.
NEXT_TO_NOTHING: dict[str, Any] = {
    "family": "bert",
    "vocab_size": 32,
    "hidden_size": 8,
    "embedding_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}
PREDICTED_SHARE = 0.15
ENGINES = ("tensorflow", "jax")
# How the model is compiled by each peer; None: it is not.
PEERS = {"torch": None, "torch_compile": "default", "torch_max_autotune": "max-autotune-no-cudagraphs"}
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.01, 1.0
BATCHES = 4

Step = Callable[[int], float]
"""Takes that many steps, waits for the last and returns its loss."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure training steps of this project and of transformers, side by side."""

    models: tuple[str, ...] = flag(
        ("albert_base", "bert_base", "bert_large"),
        help=f"{', '.join(CONFIGS)}, the path of a config, or next_to_nothing for what a step costs without work",
    )
    objectives: tuple[str, ...] = flag(
        ("pair",),
        help="what is learnt in a step: " + "; ".join(f"{name}: {work.title}" for name, work in WORKS.items()),
    )
    lengths: tuple[int, ...] = flag((128, 512), help="lengths of a text", unit="tokens")
    batch_sizes: tuple[int, ...] = flag(
        (), help="texts of a batch, a number for each length; by default 16,4 on a CPU and 256,64 on a GPU"
    )
    precision: tuple[str, ...] = flag(("float32", "bfloat16"), help="compute precisions; weights are float32")
    engines: tuple[str, ...] = flag(ENGINES, help=f"of ours: {', '.join(ENGINES)}")
    peers: tuple[str, ...] = flag(("torch", "torch_compile"), help=f"transformers on {', '.join(PEERS)}; empty: none")
    dropout: float | None = flag(None, help="rate of all dropout, instead of the config's own", minimum=0, maximum=1)
    remat: bool = flag(False, help="recompute activations in ours")
    steps_per_call: int = flag(1, help="steps in one call of ours", unit="steps", minimum=1)
    rounds: int = flag(5, help="turns of each contender", minimum=1)
    seconds: float = flag(2.0, help="least length of a turn", unit="s", minimum=0)
    results: str = flag("benchmarks/results/training_step", help="where to write, without .json and .md")
    measure: str | None = flag(None, help="internal: the contender of this process")


def main(options: Options) -> int:
    """Measures all, prints the table as it grows, and writes it."""
    if options.measure:
        measure(options)
        return 0
    on_gpu = shutil.which("nvidia-smi") is not None
    batch_sizes = options.batch_sizes or tuple((32768 if on_gpu else 2048) // length for length in options.lengths)
    check(options, batch_sizes)
    contenders = installed([*options.engines, *options.peers])
    rows, table = list[dict[str, Any]](), ""
    for model in options.models:
        for length, batch_size in zip(options.lengths, batch_sizes, strict=True):
            case = replace(options, models=(model,), lengths=(length,), batch_sizes=(batch_size,))
            rows += side_by_side(case, contenders)
            result = {"machine": machine(on_gpu), "options": options_of(options), "rows": rows}
            table = as_markdown(result)
            path = ROOT / options.results
            write_atomically(path.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
            write_atomically(path.with_suffix(".md"), table + "\n")
    print(table)
    return 0


def check(options: Options, batch_sizes: Sequence[int]) -> None:
    """Raises `UsageError` for flags that do not fit together."""
    if len(batch_sizes) != len(options.lengths):
        raise UsageError(
            f"--batch_sizes has {len(batch_sizes)} values, expected {len(options.lengths)}: one for each of --lengths"
        )
    for name, given, known in (
        ("engines", options.engines, ENGINES),
        ("peers", options.peers, tuple(PEERS)),
        ("precision", options.precision, ("float32", "bfloat16")),
        ("objectives", options.objectives, tuple(WORKS)),
    ):
        for value in given:
            if value not in known:
                raise UsageError(f"--{name}={value} is unknown: expected some of {', '.join(known)}")
    for model in options.models:
        if model not in CONFIGS and model != "next_to_nothing" and not Path(model).is_file():
            raise UsageError(f"--models={model} is neither a file nor one of {', '.join(CONFIGS)}, next_to_nothing")
    for objective in options.objectives:
        if unfit := [size for size in batch_sizes if size % WORKS[objective].texts]:
            raise UsageError(
                f"--batch_sizes={unfit[0]}: an example of --objectives={objective} has {WORKS[objective].texts} texts; "
                "expected a multiple of it"
            )
        for model in options.models:
            config_of(replace(options, models=(model,), objectives=(objective,)))


def installed(contenders: Sequence[str]) -> list[str]:
    """Return those that can run here; print which cannot."""
    left = []
    for contender in contenders:
        needed = ("torch", "transformers") if contender in PEERS else (contender,)
        missing = [package for package in needed if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{contender} is left out: {' and '.join(missing)} not installed")
        else:
            left.append(contender)
    return left


def side_by_side(case: Options, contenders: Sequence[str]) -> list[dict[str, Any]]:
    """Measures every contender on one model and length, in turns; one precision after the other, as memory is short."""
    rows = []
    taking_part = [
        (contender, objective)
        for objective in case.objectives
        for contender in contenders
        if contender in ENGINES or WORKS[objective].peers
    ]
    for precision in case.precision:
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(
                    worker(replace(case, precision=(precision,), objectives=(objective,), measure=contender))
                )
                for contender, objective in taking_part
            ]
            running = [each for each in workers if each.ready()]
            for _ in range(case.rounds):
                running = [each for each in running if each.take_turn()]
            rows += [each.row() for each in workers]
    return rows


class Worker:
    """A contender's process, seen from the one that compares."""

    def __init__(self, process: subprocess.Popen[str], errors: Any, case: Options) -> None:
        self.process, self.errors, self.case = process, errors, case
        self.steps = 1
        self.seconds: list[float] = []
        self.known: dict[str, Any] = {}

    def ready(self) -> bool:
        """Waits for the warm-up; False where it failed."""
        self.known = self._answer()
        if "error" not in self.known:
            # The next turns then take as long as they should.
            answer = self._run(1)
            if "error" not in answer:
                self.steps = max(1, round(self.case.seconds / answer["seconds"]))
        return "error" not in self.known

    def take_turn(self) -> bool:
        """Measures once more; False where the contender ended."""
        answer = self._run(self.steps)
        if "error" not in answer:
            self.seconds.append(answer["seconds"] / self.steps)
        return "error" not in answer

    def row(self) -> dict[str, Any]:
        case = self.case
        row = {
            "model": case.models[0],
            "length": case.lengths[0],
            "batch_size": case.batch_sizes[0],
            "contender": case.measure,
            "objective": case.objectives[0],
            "precision": case.precision[0],
            **self.known,
        }
        if self.seconds and "error" not in self.known:
            tokens = case.lengths[0] * case.batch_sizes[0]
            row["seconds_per_step"] = statistics.median(self.seconds)
            row["tokens_per_second"] = tokens / row["seconds_per_step"]
            row["tokens_per_second_range"] = [tokens / max(self.seconds), tokens / min(self.seconds)]
            row["steps"] = self.steps * len(self.seconds)
            row |= self._run(0)
        return row

    def _run(self, steps: int) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{steps}\n")  # pyright: ignore[reportOptionalMemberAccess]
            self.process.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        while line and not line.startswith("{"):
            line = self.process.stdout.readline()  # pyright: ignore[reportOptionalMemberAccess]
        if line:
            return json.loads(line)
        self.errors.seek(0)
        status = self.process.wait()
        lines = self.errors.read().strip().splitlines() or [f"ended with {status}"]
        error = cause_of(lines)
        if status == -signal.SIGKILL:
            error = "killed: most likely out of memory, compare fewer at once"
        print(f"{self.case.measure} {self.case.precision[0]} failed: {error}")
        # The row of the contender in the table.
        self.known["error"] = error[:200]
        return self.known


@contextlib.contextmanager
def worker(case: Options) -> Iterator[Worker]:
    """Starts this file once more for one contender."""
    given = {name: value for name, value in options_of(case).items() if value not in (None, ())}
    flags = [
        f"--{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in given.items()
    ]
    # A GPU is shared by the contenders: nobody takes all of its memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TOKENIZERS_PARALLELISM": "false"}
    # Each on its own library: a peer's process must not need TensorFlow, which a machine for JAX or torch may lack.
    environment["KERAS_BACKEND"] = "torch" if case.measure in PEERS else str(case.measure)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.training_step", *flags],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            yield Worker(process, errors, case)
        finally:
            process.kill()
            process.communicate()


def options_of(options: Options) -> dict[str, Any]:
    """The options by name."""
    return {name: getattr(options, name) for name in options.__dataclass_fields__}


# -- in a contender's process ------------------------------------------------------------------------------------------


def measure(options: Options) -> None:
    """Warms up, then takes as many steps as each line of stdin says; 0 asks for memory."""
    contender, precision = str(options.measure), options.precision[0]
    config, length, texts = config_of(options), options.lengths[0], options.batch_sizes[0]
    work = WORKS[options.objectives[0]]
    size, predictions = texts // work.texts, max(1, round(length * PREDICTED_SHARE))
    batches = random_batches(config, length, size, predictions, work)
    made = (torch_step if contender in PEERS else our_step)(options, config, batches)
    begin = time.perf_counter()
    first_loss = made.step(1)
    compile_seconds = time.perf_counter() - begin
    made.step(2 * options.steps_per_call)
    known = {
        "device": made.device,
        "predictions": predictions,
        "parameters": made.parameters,
        "flops_per_step": size * operations_of(config, length, predictions, work),
        "peak_flops_per_second": made.peak_flops_per_second(precision),
        "first_loss": first_loss,
        "first_step_seconds": compile_seconds,
        "versions": versions(contender),
    }
    print(json.dumps(known), flush=True)
    for line in sys.stdin:
        if steps := int(line):
            begin = time.perf_counter()
            made.step(steps)
            print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
        else:
            print(json.dumps({"peak_bytes": made.peak_bytes()}), flush=True)


def operations_of(config: Config, length: int, predictions: int, work: Work) -> int:
    """Return the floating-point operations of an example: every labelled token is scored in each stream."""
    from data.objectives import OBJECTIVES
    from modeling.accounting import flops_per_example

    scored = predictions * work.texts * OBJECTIVES[work.objective_of(config)].streams
    if work.pseudo:
        written = pseudo_of(config, length)
        if work.pseudo == "before":
            return flops_per_example(config, length + written, scored)
        return flops_per_example(config, length, scored, written=written)
    if work.across.get("computation") == "dense":
        return flops_per_example(config, work.texts * length, scored)
    return flops_per_example(config, length, scored, other=length if work.texts > 1 else 0)


def pseudo_of(config: Config, length: int) -> int:
    """Return the tokens of a pseudo sentence beside a text: as many as the text has, as far as there is room."""
    from tasks.across import pseudo_length

    return pseudo_length(length, 1.0, config.max_sequence_length)


@dataclass(frozen=True)
class Made:
    """What a contender is to the measurement."""

    step: Step
    device: str
    parameters: int
    peak_flops_per_second: Callable[[str], float]
    peak_bytes: Callable[[], int]


def config_of(options: Options) -> Config:
    """The config by its name or path, with what the work needs and the dropout asked for."""
    from modeling.config import Config, load_config

    model = options.models[0]
    if model == "next_to_nothing":
        config = Config(**NEXT_TO_NOTHING, max_position_embeddings=options.lengths[0])
    else:
        config = load_config(ROOT / CONFIGS[model] if model in CONFIGS else Path(model))
    config = replace(config, **WORKS[options.objectives[0]].changes)
    if options.dropout is None:
        return config
    return replace(config, hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=options.dropout)


def random_batches(
    config: Config, length: int, size: int, predictions: int, work: Work = WORKS["pair"]
) -> list[dict[str, np.ndarray]]:
    """Return batches of the reader's features and shapes; the last row of each ends in padding."""
    import numpy as np

    from data.forms import FORMS
    from data.objectives import OBJECTIVES
    from data.schema import padding

    form = FORMS[OBJECTIVES[work.objective_of(config)].form]
    generator = np.random.default_rng(0)
    lengths, batches = {"tokens": length, "predictions": predictions}, []
    for _ in range(BATCHES):
        batch = padding(form.schema, lengths, size)
        for side in form.sides:
            input_mask = np.ones((size, length), np.int32)
            input_mask[-1, length - length // 8 :] = 0
            places = [generator.choice(length - length // 8, predictions, replace=False) for _ in range(size)]
            positions = np.sort(np.stack(places), axis=1).astype(np.int32)
            batch |= {
                side.ids: generator.integers(0, config.vocab_size, (size, length), np.int32),
                side.mask: input_mask,
                f"{side.hidden}_positions": positions,
                f"{side.hidden}_ids": generator.integers(0, config.vocab_size, positions.shape, np.int32),
                f"{side.hidden}_weights": np.ones(positions.shape, np.float32),
            }
        if "segment_ids" in batch and config.type_vocab_size > 1:
            batch["segment_ids"][:, length // 2 :] = 1
        if "next_sentence_labels" in batch:
            batch["next_sentence_labels"] = generator.integers(0, 2, size, np.int32)
        if work.pseudo == "before":
            shape = size, pseudo_of(config, length)
            batch["pseudo_ids"] = generator.integers(5, config.vocab_size, shape, np.int32)
        batches.append(batch)
    return batches


def cycle(batches: Sequence[Mapping[str, Any]], steps: int) -> list[Mapping[str, Any]]:
    """`steps` batches, from the first on."""
    return [batches[number % len(batches)] for number in range(steps)]


def our_step(options: Options, config: Config, batches: list[dict[str, np.ndarray]]) -> Made:
    """Ours, on the engine of this process."""
    from data.objectives import OBJECTIVES
    from modeling import DTYPES, Computation
    from modeling.accounting import parameter_count
    from optimization import Constant, create_optimizer
    from tasks.across import Across, Pseudo
    from tasks.pretraining import PretrainingTask

    computation, work = Computation(DTYPES[options.precision[0]], remat=options.remat), WORKS[options.objectives[0]]
    objective = work.objective_of(config)
    task = PretrainingTask(
        config,
        objective,
        across=Across(**work.across),
        pseudo=Pseudo(mask_id=config.vocab_size - 1, special_ids=(0, 1, 2)) if work.pseudo else None,
        computation=computation,
    )
    optimizer = create_optimizer(
        "adamw", Constant(LEARNING_RATE), weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM, bias_correction=True
    )
    if options.measure == "tensorflow":
        from training.tensorflow_engine import TensorFlowEngine

        engine = TensorFlowEngine(task, optimizer, seed=1, steps_per_call=options.steps_per_call)
    else:
        from training.jax_engine import JaxEngine

        engine = JaxEngine(task, optimizer, seed=1, steps_per_call=options.steps_per_call)

    def step(steps: int) -> float:
        return engine.train(cycle(batches, steps))[-1]["loss"]

    parts = (jax_parts if options.measure == "jax" else tensorflow_parts)()
    return Made(step, parts[0], parameter_count(config, len(OBJECTIVES[objective].labels)), *parts[1:])


def tensorflow_parts() -> tuple[str, Callable[[str], float], Callable[[], int]]:
    """Device, peak and memory by TensorFlow."""
    import tensorflow as tf

    def peak(precision: str) -> float:
        n = 2048
        x = tf.cast(tf.random.stateless_normal((n, n), (1, 2)), precision)
        product = tf.function(lambda x: tf.matmul(x, x))
        return fastest_product(n, lambda: product(x).numpy()[0, 0])

    return "cpu", peak, peak_resident_bytes


def jax_parts() -> tuple[str, Callable[[str], float], Callable[[], int]]:
    """Device, peak and memory by JAX."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"

    def peak(precision: str) -> float:
        n = 8192 if on_gpu else 2048
        x = jax.random.normal(jax.random.key(1), (n, n)).astype(precision)
        product = jax.jit(jnp.matmul)
        return fastest_product(n, lambda: product(x, x).block_until_ready())

    def memory() -> int:
        return device.memory_stats()["peak_bytes_in_use"] if on_gpu else peak_resident_bytes()

    return (device.device_kind if on_gpu else "cpu"), peak, memory


def torch_step(options: Options, config: Config, batches: list[dict[str, np.ndarray]]) -> Made:
    """The model of transformers, its heads read at the predicted positions alone, as ours are."""
    import torch
    import transformers

    torch.manual_seed(1)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    # What JAX does with float32 products on a GPU.
    torch.set_float32_matmul_precision("high")
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        # torch's own kernel; transformers' "gelu_new" is the same function in Python.
        "hidden_act": {"gelu": "gelu_pytorch_tanh", "gelu_erf": "gelu"}.get(config.hidden_act, config.hidden_act),
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.layer_norm_eps,
        "attn_implementation": "sdpa",
    }
    model: Any
    if config.family == "albert":
        shape |= {"embedding_size": config.embedding_size, "classifier_dropout_prob": 0.0}
        model = transformers.AlbertForPreTraining(transformers.AlbertConfig(**shape))
        backbone, words, pair = model.albert, model.predictions, model.sop_classifier
    else:
        model = transformers.BertForPreTraining(transformers.BertConfig(**shape))
        backbone, words, pair = model.bert, model.cls.predictions, model.cls.seq_relationship
    model.to(device).train()
    plain = [p for name, p in model.named_parameters() if "LayerNorm" in name or "layer_norm" in name or "bias" in name]
    decayed = [p for p in model.parameters() if not any(p is other for other in plain)]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=1e-6, fused=True)
    parameters = list(model.parameters())

    def loss_of(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision[0] == "bfloat16"):
            outputs = backbone(
                input_ids=batch["input_ids"], attention_mask=batch["input_mask"], token_type_ids=batch["segment_ids"]
            )
            states = outputs.last_hidden_state
            rows = batch["masked_lm_positions"] + states.shape[1] * torch.arange(
                states.shape[0], device=states.device
            ).unsqueeze(1)
            scores = words(states.flatten(0, 1)[rows.flatten()])
            masked = torch.nn.functional.cross_entropy(scores, batch["masked_lm_ids"].flatten())
            ordered = torch.nn.functional.cross_entropy(
                pair(outputs.pooler_output), batch["next_sentence_labels"].flatten()
            )
        return masked + ordered

    mode = PEERS[str(options.measure)]
    compiled = loss_of if mode is None else torch.compile(loss_of, mode=mode)
    tensors = [
        {
            name: torch.from_numpy(value).to(device, torch.long if value.dtype.kind == "i" else torch.float32)
            for name, value in batch.items()
        }
        for batch in batches
    ]

    def step(steps: int) -> float:
        loss = torch.zeros(())
        for batch in cycle(tensors, steps):
            loss = compiled(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def peak(precision: str) -> float:
        n = 8192 if on_gpu else 2048
        x = torch.randn(n, n, device=device).to(getattr(torch, precision))

        def product() -> float:
            return (x @ x)[0, 0].item()

        return fastest_product(n, product)

    def memory() -> int:
        return torch.cuda.max_memory_allocated() if on_gpu else peak_resident_bytes()

    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    return Made(step, name, sum(p.numel() for p in parameters), peak, memory)


def fastest_product(n: int, product: Callable[[], Any]) -> float:
    """Operations a second of an n x n matrix product, the fastest of ten."""
    product()

    def seconds() -> float:
        begin = time.perf_counter()
        product()
        return time.perf_counter() - begin

    return 2 * n**3 / min(seconds() for _ in range(10))


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions(contender: str) -> str:
    """What the contender runs on."""
    packages = ("torch", "transformers") if contender in PEERS else ("keras", contender)
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


def cause_of(lines: Sequence[str]) -> str:
    """Return the line that names the exception; hints may follow that line, as torch's compiler does it."""
    causes = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Unsupported): ", line)]
    return causes[-1] if causes else lines[-1]


# -- results -----------------------------------------------------------------------------------------------------------


def machine(on_gpu: bool) -> str:
    """What the results depend on but for the contenders' versions."""
    parts = [platform.machine(), f"{len(os.sched_getaffinity(0))} cores", f"Python {platform.python_version()}"]
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    parts += ["AMX"] if "amx_bf16" in flags else []
    if on_gpu:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        parts.append(subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0])
    return ", ".join(parts)


def as_markdown(result: Mapping[str, Any]) -> str:
    """The results for a person: one table for every model and length, the fastest first."""
    options = result["options"]
    learnt = "; ".join(WORKS[name].title for name in dict.fromkeys(row["objective"] for row in result["rows"]))
    learnt = learnt[:1].upper() + learnt[1:]
    lines = [
        "# A training step",
        "",
        f"{result['machine']}; load average {os.getloadavg()[1]:.1f}. Median of {options['rounds']} turns, slowest to "
        f"fastest in brackets, after warm-up. {learnt}; {PREDICTED_SHARE:.0%} of positions are masked. "
        "AdamW, clipping; utilisation is of the fastest matrix product that any contender did in that precision. "
        "Memory is that of the whole process on a CPU and of the allocator on a GPU.",
    ]
    peaks: dict[str, float] = {}
    for row in result["rows"]:
        peaks[row["precision"]] = max(peaks.get(row["precision"], 0.0), row.get("peak_flops_per_second", 0.0))
    cases = dict.fromkeys((row["model"], row["length"], row["batch_size"]) for row in result["rows"])
    for case in cases:
        rows = [row for row in result["rows"] if (row["model"], row["length"], row["batch_size"]) == case]
        rows.sort(key=lambda row: row.get("seconds_per_step", float("inf")))
        model, length, batch_size = case
        lines += ["", f"## {model}, {batch_size} x {length} tokens", ""]
        lines += [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
        lines += [line_of(row, peaks) for row in rows]
        same_work = [row for row in rows if WORKS[row["objective"]].peers]
        best = {
            ours: max(row.get("tokens_per_second", 0.0) for row in same_work if (row["contender"] in ENGINES) == ours)
            for ours in {row["contender"] in ENGINES for row in same_work}
        }
        if all(best.get(ours) for ours in (True, False)):
            ratio = best[True] / best[False]
            lines += ["", f"The best of ours makes {ratio:.2f} times the tokens a second of the best of transformers'."]
        lines += [line for text in beyond_arithmetic(rows) for line in ("", text)]
    found = dict.fromkeys(row["versions"] for row in result["rows"] if "versions" in row)
    lines += ["", f"Peak: {', '.join(f'{name} {peak / 1e12:.2f} TFLOP/s' for name, peak in peaks.items())}. "]
    lines[-1] += f"{'; '.join(found)}."
    return "\n".join(lines)


_COLUMNS = (
    "contender",
    "precision",
    "tokens/s",
    "ms a step",
    "utilisation",
    "peak MB",
    "first step s",
    "first loss",
)


def beyond_arithmetic(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return, for every work with another one `beside` it, how its time compares with that one's, and its operations.

    Example: veco takes 0.44 s and masked_lm 0.2 s, 2.2 times; its operations are 2.0 times as many: 1.10.
    """
    measured = {
        (row["contender"], row["precision"], row["objective"]): row for row in rows if "seconds_per_step" in row
    }
    lines = []
    for (contender, precision, objective), row in measured.items():
        plain = measured.get((contender, precision, WORKS[objective].beside))
        if plain is None or "error" in row or "error" in plain:
            continue
        times, counted = (row[name] / plain[name] for name in ("seconds_per_step", "flops_per_step"))
        ratio = times / counted
        verdict = "at most" if ratio <= MOST_BEYOND_ARITHMETIC else "more than"
        lines.append(
            f"{contender}, {precision}: a step of {objective} takes {times:.2f} times as long as one of "
            f"{WORKS[objective].beside} on as many tokens, and has {counted:.2f} times its operations: {ratio:.2f} "
            f"times what its arithmetic says, {verdict} {MOST_BEYOND_ARITHMETIC}."
        )
    return lines


def line_of(row: Mapping[str, Any], peaks: Mapping[str, float]) -> str:
    """A row of the table; where the contender failed, why."""
    name = row["contender"] if WORKS[row["objective"]].peers else f"{row['contender']}, {row['objective']}"
    if "error" in row or "tokens_per_second" not in row:
        return f"| {name} | {row['precision']} | failed: {row.get('error')} | | | | | |"
    slowest, fastest = (f"{tokens:,.0f}" for tokens in row["tokens_per_second_range"])
    utilisation = row["flops_per_step"] / row["seconds_per_step"] / peaks[row["precision"]]
    return (
        f"| {name} | {row['precision']} | {row['tokens_per_second']:,.0f} ({slowest}-{fastest}) | "
        f"{row['seconds_per_step'] * 1e3:,.2f} | {utilisation:.1%} | {row['peak_bytes'] / 1e6:,.0f} | "
        f"{row['first_step_seconds']:.1f} | {row['first_loss']:.2f} |"
    )


if __name__ == "__main__":
    run(main, Options)
