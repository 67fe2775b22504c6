"""One training run, from its flags to its results: the flow that every training verb follows.

    session = Session.check(options, ["bert_config_file"])   # before anything slow is imported
    data = session.together(lambda: ...)                      # open the data; a mistake ends all processes
    config = session.start(vocab_size=..., ...)               # the backend, the model's shape
    session.build(task, schedule, batch_size=...)             # model, optimizer, engine
    with session.entered(run, reads, num_steps):              # the output folder is free, and of this run
        session.start_from(options.init_checkpoint, ...)      # or: session.restore(...)
        session.describe(tokenizer)                           # config.json, model_config.json, run.json
        outcome = session.train(dataset, evaluate, ...)       # or, with --dry_run: session.show_plan(...)
        session.finish("eval_results", scores, title)

The methods are defined in the order in which a verb calls them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from absl.app import UsageError

from commands.devices import Devices, chip_of, found_devices, peak_flops_per_second, steps_per_call
from commands.estimate import Work, estimate
from commands.flags import resolved, write_config
from commands.options import TrainingOptions
from commands.sizes import check_batch, check_model
from ground import documents
from ground.files import write_atomically
from ground.locks import holding
from ground.outputs import check_outputs

if TYPE_CHECKING:
    from commands.devices import AnyEngine
    from commands.weights import Adjust
    from modeling.computation import Computation
    from modeling.config import Config
    from optimization import Schedule
    from tasks.datasets import DatasetRow
    from tasks.run_file import RunFile, TokenizerFile
    from training.engine import Batch, Dataset, Task
    from training.loop import Outcome
    from training.run import RunPlan

Result = TypeVar("Result")


class Session:
    """The state of one run.

    Attributes:
        options: flags of the verb.
        devices: where the run computes.
        config: of the model, once the session is started.
        engine: once the session is built.
        config_beside: of the model, as it lies beside its weights, where no --bert_config_file is given.
        program: what decides the compiled functions of the engine, once the session is built with one.
        weights: what became of every tensor of --init_checkpoint, for the preamble.
    """

    config: Config
    engine: AnyEngine
    config_beside: Config | None = None
    program: Any = None
    _former: Session | None = None
    _run: RunFile
    _is_kept: bool

    def __init__(self, options: TrainingOptions, devices: Devices):
        self.options, self.devices = options, devices
        self.weights = "new"

    @classmethod
    def check(cls, options: TrainingOptions, files: Sequence[str]) -> Session:
        """Bring the processes of the run together and look for the files that the named flags give.

        Raises `UsageError` for what the devices cannot do, and for the first file that is missing.
        """
        session = cls(options, Devices(options))
        session.together(lambda: check_files(options, files))
        return session

    def with_options(self, options: TrainingOptions, former: Session | None = None) -> Session:
        """Return a session of other flags on the same devices, from the same weights.

        It takes over the engine of `former`, a finished one whose flags differ in seed and folders alone, if what it
        builds is the same program.
        """
        session = Session(options, self.devices)
        session.config_beside, session._former = self.config_beside, former
        return session

    @property
    def writes(self) -> bool:
        """Whether this process writes the files of the run and talks."""
        return self.devices.processes.writes

    def say(self, *lines: str) -> None:
        """Print lines; of several processes only the first does."""
        if self.writes:
            print(*lines, sep="\n", flush=True)

    def together(self, function: Callable[[], Result]) -> Result:
        """Call `function` in every process; a user's mistake in one ends all, in one line that names the process."""
        return self.devices.processes.together(function)

    @property
    def config_path(self) -> str:
        """Where the config comes from, for messages."""
        if self.config_beside is not None:
            return getattr(self.options, "init_checkpoint", None) or self.options.output_dir
        return self.options.bert_config_file  # pyright: ignore[reportAttributeAccessIssue]

    # -- model and engine ----------------------------------------------------------------------------------------------

    def start(self) -> Config:
        """Start the backend and return --bert_config_file; raises `UsageError` if it cannot be read or cut."""
        self.devices.start()
        from modeling import load_config

        path = self.config_path
        self.config = self.config_beside or load_config(path)
        check_cuts(self.config, path, self.options.model_parallel)
        if found_devices()[0] == "CPU":
            check_model(self.config, path)
        return self.config

    def check_fit(
        self,
        *,
        vocab_size: int,
        vocabulary: str,
        max_seq_length: int,
        max_target_length: int = 0,
        tokens: int = 0,
        scored: int = 0,
        rows_per_example: int = 1,
    ) -> None:
        """Raise `UsageError` unless the data fits the model, and a batch the memory of a CPU.

        Its ids have to lie in the vocabulary, its lengths within the positions.

        Args:
            vocab_size: of the data.
            vocabulary: its file, for messages.
            max_seq_length: tokens of a text.
            max_target_length: tokens of a target.
            tokens: of all texts of an example that a layer computes at once; 0: `max_seq_length`.
            scored: positions of an example that are scored over the vocabulary.
            rows_per_example: rows of so many tokens and scores that are computed for an example.
        """
        path = self.config_path
        if self.config.vocab_size != vocab_size:
            raise UsageError(
                f"{vocabulary} has {vocab_size:,} entries but {path} has vocab_size={self.config.vocab_size:,}: "
                "use the vocabulary that belongs to the config"
            )
        for name, length in (("max_seq_length", max_seq_length), ("max_target_length", max_target_length)):
            if length > self.config.max_sequence_length:
                raise UsageError(
                    f"{name}={length} but {path} has positions for {self.config.max_sequence_length} "
                    "tokens: use shorter examples or a config with a larger max_position_embeddings"
                )
        if found_devices()[0] == "CPU":
            for what, uses in (("train", "do_train"), ("eval", "do_eval"), ("predict", "do_predict")):
                if getattr(self.options, uses, False):
                    flag = f"{what}_batch_size"
                    parts = self.options.gradient_accumulation_steps if what == "train" else 1
                    rows = getattr(self.options, flag)
                    length = tokens or max_seq_length
                    check_batch(self.config, flag, rows, length, scored, parts, rows_per_example)

    def computation(self) -> Computation:
        """Return how the model computes, as the flags say."""
        from modeling.computation import DTYPES, Computation

        options = self.options
        return Computation(
            dtype=DTYPES[options.precision], seed=options.seed, remat=options.remat, scan=options.scan_layers
        )

    def build(
        self,
        task: Task,
        schedule: Schedule,
        *,
        batch_size: int,
        most_steps_per_call: int | None = None,
        program: Any = None,
        **behaviour: Any,
    ) -> AnyEngine:
        """Build the model, the optimizer of the flags and the engine; `behaviour` goes to `create_optimizer`.

        `most_steps_per_call` limits the steps of one compiled call beyond what the flags say. `program` is all that
        the compiled functions depend on beside the flags, but the seed: where it equals that of a former session, its
        engine starts again.

        Raises `UsageError` for a batch that the devices cannot share.
        """
        from optimization import create_optimizer

        options, former = self.options, self._former
        # Else a chain of sessions would keep the engines of all.
        self.program, self._former = program, None
        if former and program is not None and former.program == program:
            self.engine = former.engine
            self.engine.restart(task, options.seed)
            return self.engine
        optimizer = create_optimizer(
            options.optimizer,
            schedule,
            weight_decay=options.weight_decay,
            clip_norm=options.clip_norm or None,
            beta_1=options.adam_beta1,
            beta_2=options.adam_beta2,
            epsilon=options.adam_epsilon,
            bias_correction=options.adam_bias_correction or None,
            **behaviour,
        )
        self.engine = self.devices.engine(task, optimizer, options, batch_size, most_steps_per_call)
        return self.engine

    # -- weights -------------------------------------------------------------------------------------------------------

    def start_from(
        self,
        path: str | None,
        *,
        allow_missing: Sequence[str],
        allow_unexpected: Sequence[str],
        adjust: Adjust | None = None,
        labels: Sequence[str] = (),
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Load --init_checkpoint, if one is given, into the model; the arguments are those of `weights.initialize`.

        `train` overrides these weights if the output folder holds a checkpoint of this run.
        """
        from commands.weights import initialize

        if path:
            self.weights = initialize(
                self.engine.model,
                self.config,
                path,
                allow_missing=allow_missing,
                allow_unexpected=allow_unexpected,
                adjust=adjust,
                labels=labels,
                aliases=aliases,
            )

    def restore(
        self,
        init_checkpoint: str | None = None,
        *,
        allow_unexpected: Sequence[str] = (),
        adjust: Adjust | None = None,
        best: bool = True,
        labels: Sequence[str] = (),
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """Load the weights of the finished run in the output folder, else `init_checkpoint`; return their step.

        Without `best` they are the newest.
        """
        from commands.weights import restore

        return restore(
            self.engine,
            self.config,
            self.options.output_dir,
            init_checkpoint,
            allow_unexpected=allow_unexpected,
            adjust=adjust,
            only_reads=self.options.dry_run,
            best=best,
            labels=labels,
            aliases=aliases,
        )

    # -- what the run leaves -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def entered(self, run: RunFile, reads: Mapping[str, Iterable[str | Path | None]], num_steps: int) -> Iterator[None]:
        """Hold the output folder inside, once it is sure that the run may go on there.

        Args:
            run: what the run is made of; the tokenizer's file may be missing.
            reads: the files that the run reads, by flag.
            num_steps: the step at which training is to end.

        Raises:
            UsageError: the folder is in use, holds another run, or files of somebody else.
        """
        from commands import resuming
        from training.checkpoints import list_checkpoints

        folder, trains = Path(self.options.output_dir), bool(getattr(self.options, "do_train", False))
        self._run, self._is_kept = run, False
        with contextlib.ExitStack() as stack:

            def enter() -> None:
                if not self.writes:
                    return
                check_outputs(reads, resuming.targets(folder, run.row.files if run.row else ()))
                if not self.options.dry_run:
                    stack.enter_context(self.held())
                if self.overwrites:
                    self.overwrite(folder, reads)
                    return
                checkpoints = list_checkpoints(folder)
                changes = resuming.compare(folder, self.options, run, trains=trains, goes_on=bool(checkpoints))
                if trains:
                    resuming.check_records(folder, checkpoints, as_json(self.config), self.options.seed)
                    self.check_state(checkpoints)
                if trains and checkpoints:
                    resuming.check_steps(folder, int(checkpoints[-1].name.removeprefix("step_")), num_steps)
                # A run that is only scored keeps the flags that it was trained with.
                self._is_kept = not trains and bool(checkpoints or (folder / "best").is_dir())
                if changes:
                    self.say(f"continuing with {', '.join(changes)}")

            self.together(enter)
            yield

    @property
    def overwrites(self) -> bool:
        """Whether a run that lies in the output folder makes room for this one."""
        return bool(getattr(self.options, "overwrite_output_dir", False))

    def overwrite(self, folder: Path, reads: Mapping[str, Iterable[str | Path | None]]) -> None:
        """Remove the former run of the output folder; a dry run says that it would. Raises `UsageError`."""
        from commands.overwriting import remove_former_run
        from commands.resuming import holds_run

        if self.options.dry_run:
            said = f"--overwrite_output_dir: the run in {folder} would be removed" if holds_run(folder) else ""
        else:
            said = remove_former_run(folder, reads)
        if said:
            self.say(said)

    def check_state(self, checkpoints: Sequence[Path]) -> None:
        """Raise `UsageError` unless the newest whole checkpoint has the tensors of this run; no numbers are read."""
        from training.checkpoints import CorruptCheckpointError, none_is_whole, read_state

        for folder in reversed(checkpoints):
            try:
                self.engine.check_state(read_state(folder, stored=True, share=(-1, 1)).tensors)
                return
            except UsageError as error:
                raise UsageError(f"{folder}: {error}") from None
            except CorruptCheckpointError:
                continue  # the one before it is taken
        if checkpoints:
            raise none_is_whole(checkpoints)

    @contextlib.contextmanager
    def entered_for_seeds(self, reads: Mapping[str, Iterable[str | Path | None]]) -> Iterator[None]:
        """Hold a folder that receives the scores of several runs, each in a folder below; raises as `entered`."""
        from commands import resuming

        with contextlib.ExitStack() as stack:

            def enter() -> None:
                if self.writes:
                    check_outputs(reads, resuming.targets(Path(self.options.output_dir)))
                    if not self.options.dry_run:
                        stack.enter_context(self.held())

            self.together(enter)
            yield

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Return a lock of the output folder; raises `UsageError` where another process has it."""
        from commands import resuming

        folder = Path(self.options.output_dir)
        return holding(
            folder / resuming.LOCK,
            f"--output_dir={folder}",
            keep=lambda: not resuming.holds_run(folder),
        )

    def describe(self, tokenizer: Callable[[Path], TokenizerFile]) -> None:
        """Write the resolved flags, the model's shape and `run.json`.

        Args:
            tokenizer: saves the tokenizer in a folder and returns its description; called where files are written.

        Raises:
            UsageError: the processes of the run do not share the output folder.
        """
        folder, run = Path(self.options.output_dir), self._run

        def write() -> None:
            if self.writes and not (self._is_kept and (folder / "run.json").exists()):
                write_config(self.options, folder / "config.json")
                write_atomically(folder / "model_config.json", self.config.to_json())
                dataclasses.replace(run, tokenizer=tokenizer(folder)).write(folder)

        def read() -> None:
            if not (folder / "config.json").exists():
                raise UsageError(
                    f"--output_dir={folder} is not the same folder everywhere: put it on a file system that all hosts "
                    "share"
                )

        self.together(write)
        self.together(read)

    def keep_row(self, row: DatasetRow) -> None:
        """Write the row of the run's task anew where dev has decided something of it, such as a threshold."""
        from tasks.run_file import RunFile

        if self.writes and self._run.row != row:
            folder = Path(self.options.output_dir)
            dataclasses.replace(RunFile.read(folder), row=row).write(folder)
            self._run = dataclasses.replace(self._run, row=row)

    # -- training ------------------------------------------------------------------------------------------------------

    def rows_of_process(self) -> tuple[int, int]:
        """Return (index, count): this process computes the index-th of count equal parts of every training batch."""
        placement = getattr(self.engine, "placement", None)
        return placement.host_part if placement else (0, 1)

    def own_rows(self, dataset: Dataset) -> Dataset:
        """Return the data set with the rows that this process computes."""
        index, count = self.rows_of_process()
        return dataset if count == 1 else OwnRows(dataset, index, count)

    def train(
        self,
        dataset: Dataset,
        evaluate: Callable[[], dict[str, float]] | None,
        facts: Mapping[str, str],
        **plan: Any,
    ) -> Outcome:
        """Train on the rows of this process; continue if the output folder holds a checkpoint.

        Args:
            dataset: gives this process its rows.
            evaluate: returns the scores of the present weights.
            facts: what the run is about, for the preamble.
            plan: fields of `training.loop.RunPlan` that flags shared by all verbs do not decide.
        """
        from training.loop import train

        return train(self.engine, dataset, self._run_plan(facts, **plan), evaluate=evaluate)

    def show_plan(self, facts: Mapping[str, str], works: Sequence[Work], **plan: Any) -> None:
        """Print what the run would show first and, if it has works, how much they take; for --dry_run.

        Raises `UsageError` where the run could not write its output folder, or not continue what is there.
        """
        from training.hooks import print_preamble
        from training.loop import step_to_continue_from
        from training.planning import find_chip

        chosen = self._run_plan(facts, **plan)
        self.together(lambda: check_writable(chosen.output_dir))
        summary, step = dict(chosen.summary), 0
        if works:
            step = 0 if self.overwrites else step_to_continue_from(chosen, self.options.seed)
            device, count = found_devices()
            chip = find_chip("cpu") if device == "CPU" else chip_of(device)
            summary |= estimate(self.config, self.options, works, chip, device, 1 if device == "CPU" else count)
        if self.writes:
            print_preamble(summary, step, sys.stdout)
            print("--dry_run: nothing was written; the same command without it starts the run", flush=True)

    def _run_plan(self, facts: Mapping[str, str], **plan: Any) -> RunPlan:
        """Return everything that is settled about the run."""
        from training.run import RunPlan

        options = self.options
        return RunPlan(
            output_dir=Path(options.output_dir),
            config=as_json(self.config),
            complete_config=complete_config,
            options=documents.as_json(resolved(options)),
            summary=self._preamble(facts),
            keep_checkpoint_max=options.keep_checkpoint_max,
            log_every_steps=options.log_steps,
            steps_per_call=steps_per_call(options),
            on_spike=options.on_spike,
            spike_threshold=options.spike_threshold,
            profile_steps=options.profile_range(),
            peak_flops_per_second=peak_flops_per_second(*found_devices(), options.precision),
            **plan,
        )

    def _preamble(self, facts: Mapping[str, str]) -> dict[str, str]:
        """Return what a run shows first: the model, its size, where and how it computes, and `facts`."""
        config, options = self.config, self.options
        parameters = sum(math.prod(variable.shape) for variable in self.engine.model.trainable_variables)
        slots = 2 + bool(options.ema_decay)
        return {
            "model": f"{config.family}, {config.num_hidden_layers} layers of width {config.hidden_size}, "
            f"{parameters:,} parameters",
            "memory": f"{parameters * 4 * (2 + slots) / 2**20:,.0f} MiB for weights, gradients and optimizer state",
            "device": f"{self.devices.text()}, {options.precision}",
            **({"gpu": unused} if (unused := self.devices.unused_text()) else {}),
            "weights": self.weights,
            **facts,
            "output": options.output_dir,
        }

    # -- results -------------------------------------------------------------------------------------------------------

    def finish(
        self,
        name: str,
        scores: Mapping[str, float],
        title: str,
        lists: Mapping[str, Any] = MappingProxyType({}),
        table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None,
        **further: float,
    ) -> None:
        """Print the scores as a table and write them, with `further`, as JSON and as `name = value` lines.

        albert_zh's scripts leave such lines. `lists` go to the JSON alone; `table` is what is printed in place of a
        line a score.
        """
        from ground.tables import print_table

        if not self.writes:
            return
        results = {**further, **scores}
        self.write_results(name, results, lists)
        text = "".join(f"{key} = {value}\n" for key, value in sorted(results.items()))
        write_atomically(Path(self.options.output_dir) / f"{name}.txt", text)
        columns, rows = table or (["score", "value"], [[key, f"{value:.4f}"] for key, value in scores.items()])
        print_table(title, columns, rows)

    def write_results(
        self, name: str, results: Mapping[str, float], lists: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Write results as JSON, an entry a line."""
        if self.writes:
            content = {**results, **lists}.items()
            entries = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content]
            path = Path(self.options.output_dir) / f"{name}.json"
            write_atomically(path, "{\n" + ",\n".join(entries) + "\n}\n")


class OwnRows:
    """Of every batch of a data set the rows that one process computes."""

    def __init__(self, dataset: Dataset, index: int, count: int):
        self.num_examples = dataset.num_examples
        self._dataset, self._index, self._count = dataset, index, count

    def batch(self, step: int) -> Batch:
        """Return that part of the batch of `step`."""
        import numpy as np

        return {name: np.split(value, self._count)[self._index] for name, value in self._dataset.batch(step).items()}


def check_files(options: Any, names: Sequence[str]) -> None:
    """Raise `UsageError` for the first of the named flags whose file is missing."""
    for name in names:
        path = getattr(options, name)
        if path and not Path(path).is_file():
            raise UsageError(f"--{name}={path}: no such file")


def check_writable(folder: Path) -> None:
    """Raise `UsageError` where `folder` is not there and cannot be made, or is no folder that can be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "may not be written" if there.is_dir() else "is a file"
        raise UsageError(f"--output_dir={folder}: {there} {reason}; give another folder")


def check_cuts(config: Config, path: str, model_parallel: int) -> None:
    """Raise `UsageError` where --model_parallel would cut through an attention head."""
    if config.num_attention_heads % model_parallel:
        raise UsageError(
            f"--model_parallel={model_parallel} does not divide the {config.num_attention_heads} attention "
            f"heads of {path}: choose a number that does"
        )


def as_json(values: Any) -> dict[str, Any]:
    """Return a dataclass as the values that its JSON holds: tuples become lists."""
    return documents.as_json(dataclasses.asdict(values))


def complete_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of an older checkpoint with the defaults of the fields that it lacks."""
    from modeling.config import Config

    return as_json(Config.from_json(values))
