"""Fine-tune, evaluate and generate: questions, summaries, titles, replies from an encoder-decoder such as PALM."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from absl.app import UsageError

from commands import fine_tuning, seeds
from commands.fine_tuning import FineTuningOptions
from commands.flags import Group, flag, run
from commands.needs import Need, check_needs
from commands.task_files import find_task
from generation.settings import PRESETS, RULES, Preset, chosen_preset

if TYPE_CHECKING:
    from commands.session import Session
    from data.source_target import SourceTargetDataset
    from tasks.kinds import HeadOptions
    from tasks.splits import Splits
    from tasks.text_generator import TextGenerator

_PRESET = "the preset's"


@dataclass(frozen=True, kw_only=True)
class Options(FineTuningOptions):
    """Fine-tune, evaluate and generate with an encoder-decoder."""

    _lengths: ClassVar = Group.EXAMPLES
    max_target_length: int = flag(
        128, help="longer targets are cut, and nothing longer is generated", unit="tokens", minimum=2, essential=True
    )
    long_sources: str = flag(
        "cut",
        help="what becomes of sources over --max_seq_length: cut, with a count, or refused",
        choices=("cut", "refuse"),
    )
    _training: ClassVar = Group.TRAINING
    label_smoothing: float = flag(
        0.1, help="share of a label that is spread over the vocabulary, in training", minimum=0, maximum=0.9
    )
    do_interactive: bool = flag(
        False,
        help="read sources from standard input, a line each (two texts with a TAB between), and answer each",
        essential=True,
        group=Group.EVALUATION,
    )
    _generation: ClassVar = Group.GENERATION
    preset: str = flag(
        "palm", help="settings of a published system; the flags below change them", choices=tuple(PRESETS)
    )
    num_beams: int | None = flag(
        None, help="hypotheses that grow side by side; 1 is greedy; " + _PRESET, essential=True
    )
    num_return_sequences: int | None = flag(None, help="hypotheses that are written of a source; " + _PRESET)
    min_new_tokens: int | None = flag(None, help="least tokens before the end; " + _PRESET, unit="tokens")
    length_penalty: float | None = flag(
        None, help="exponent of the length that sums of log-probabilities are divided by; " + _PRESET
    )
    early_stopping: str | None = flag(
        None,
        help="whether a source is finished with as many hypotheses as beams, or when no beam can win; " + _PRESET,
        choices=("true", "false", "never"),
    )
    no_repeat_ngram_size: int | None = flag(None, help="no n-gram of this size comes twice; 0 allows all; " + _PRESET)
    repetition_penalty: float | None = flag(None, help="above 1, lowers tokens that were written before; " + _PRESET)
    do_sample: bool | None = flag(None, help="draw tokens by their probability, with --seed; " + _PRESET)
    temperature: float | None = flag(None, help="divides the scores before a draw; " + _PRESET)
    top_k: int | None = flag(None, help="draw from so many best tokens; 0 from all; " + _PRESET)
    top_p: float | None = flag(None, help="draw from the fewest tokens of this probability; " + _PRESET)
    finishing_rule: str | None = flag(None, help="when hypotheses and sources are finished; " + _PRESET, choices=RULES)


NEEDS = (
    *fine_tuning.NEEDS,
    Need(("label_smoothing",), "--do_train", lambda o: o.do_train),
    Need(("long_sources",), "an input file", lambda o: o.do_train or o.do_eval or o.do_predict),
)


def main(options: Options) -> None:
    """Fine-tune, evaluate and generate as the flags say, once a seed; then answer standard input."""
    if not (options.do_train or options.do_eval or options.do_predict or options.do_interactive):
        raise UsageError("nothing to do: give at least one of --do_train, --do_eval, --do_predict, --do_interactive")
    check_needs(options, NEEDS)
    if options.do_interactive and seeds.seeds_of(options):
        flag = "--seeds" if options.seeds else "--num_seeds" if options.num_seeds else "--restart_degenerate"
        raise UsageError(f"--do_interactive answers with one model, {flag} trains several: leave one of both out")
    chosen(options)  # refuses what does not go together before anything slow begins
    session, options = fine_tuning.checked(options)
    row, files = find_task(session, options, Generation.verb)
    seeds.run_seeds(session, options, row, files, lambda own: Generation(chosen(own)))


def chosen(options: Options) -> Preset:
    """Return the preset with what the flags change; raises `UsageError` for settings that do not go together."""
    return chosen_preset(vars(options))


class Generation:
    """The course of a run that gives each source a text; fulfils `commands.fine_tuning.Course`."""

    verb = "run_generation"
    predictions = ".jsonl"

    def __init__(self, preset: Preset):
        self._preset = preset
        self._generator: TextGenerator | None = None

    def head(self, options: Options) -> HeadOptions:
        """Return the label smoothing."""
        from tasks.kinds import HeadOptions

        return HeadOptions(label_smoothing=options.label_smoothing)

    def optimizing(self, session: Session, options: Options, num_steps: int) -> Mapping[str, Any]:
        """Return nothing further."""
        return {}

    def checked(self, session: Session, options: Options, splits: Splits) -> None:
        """Refuse a model without a decoder, positions that are too few, and with --long_sources=refuse long ones."""
        config, path = session.config, options.bert_config_file
        if not config.num_decoder_layers:
            raise UsageError(
                f"{path} has no decoder; use a config with num_decoder_layers: albert_config/palm_*.json, or VECO's "
                'with "num_decoder_layers": 6 and "cross_attention": false'
            )
        if options.max_target_length > config.max_target_length:
            raise UsageError(
                f"--max_target_length={options.max_target_length} but {path} has positions for "
                f"{config.max_target_length} tokens"
            )
        for split, dataset in splits.datasets.items():
            cut = dataset.examples.sources.truncated_examples  # pyright: ignore[reportAttributeAccessIssue]
            if cut and options.long_sources == "refuse":
                raise UsageError(
                    f"{cut:,} sources of {split} have more than --max_seq_length={options.max_seq_length} tokens; "
                    "raise it, or cut them with --long_sources=cut"
                )

    def best_from_step(self, options: Options, num_steps: int) -> int:
        """Return 0: any weights may be the best."""
        return 0

    def before_training(self, session: Session, options: Options, task: Any, splits: Splits) -> Mapping[str, str]:
        """Return how text is generated."""
        return {"generation": self._preset.describe()}

    def answers(self, session: Session, options: Options, splits: Splits, split: str) -> list[Any]:
        """Return the hypotheses for every source, and the loss of its target."""
        dataset: SourceTargetDataset = splits.datasets[split]  # pyright: ignore[reportAssignmentType]
        losses = splits.answers(session.engine, split, self._batch_size(options, split))
        with session.engine.evaluated_weights():
            found = self._generate(session, options, splits)(dataset.sources())
        return [loss | {"hypotheses": texts} for loss, texts in zip(losses, found, strict=True)]

    def finish(self, session: Session, options: Options, splits: Splits) -> None:
        """With --do_interactive answer the lines of standard input."""
        if options.do_interactive and session.writes:
            with session.engine.evaluated_weights():
                answer_lines(self._generate(session, options, splits), splits, options.max_seq_length)

    def _generate(self, session: Session, options: Options, splits: Splits) -> TextGenerator:
        """Return the generator, whose compiled programs are kept from one evaluation to the next."""
        from tasks.text_generator import TextGenerator

        if self._generator is None:
            self._generator = TextGenerator(
                session.engine.model,
                splits.tokenizer,
                self._preset,
                batch_size=options.predict_batch_size,
                max_seq_length=options.max_seq_length,
            )
        return self._generator

    def _batch_size(self, options: Options, split: str) -> int:
        return options.eval_batch_size if split.startswith("dev") else options.predict_batch_size


def answer_lines(generate: TextGenerator, splits: Splits, max_seq_length: int) -> None:
    """Read sources from standard input and print what is generated, a line each, until the input ends."""
    import numpy as np

    from data.labelled import encode_examples, padded

    row, prompts = splits.row, sys.stdin.isatty()
    wanted = "two texts with a TAB between" if row.is_pair else "a text"
    if prompts:
        print(f"{wanted}, or an empty line to end", flush=True)
    for line in iter(lambda: _next_line(prompts), ""):
        texts = line.rstrip("\r\n").split("\t")
        if len(texts) != 1 + row.is_pair or not all(text.strip() for text in texts):
            print(f"expected {wanted}", file=sys.stderr, flush=True)
            continue
        second = [texts[1]] if row.is_pair else None
        encoded = encode_examples([texts[0]], second, [-1], splits.tokenizer, max_seq_length)
        (hypotheses,) = generate(padded(encoded, np.arange(1), 1, max_seq_length))
        for hypothesis in hypotheses:
            print(hypothesis["text"], flush=True)


def _next_line(prompts: bool) -> str:
    """Return the next line of standard input; empty at its end, and for an empty line of a person."""
    if prompts:
        print("> ", end="", flush=True)
    line = sys.stdin.readline()
    return "" if prompts and not line.strip() else line


if __name__ == "__main__":
    run(main, Options)
