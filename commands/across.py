"""What the flags of ERNIE-M's objectives lead to, and whether records, model and weights serve (`tasks/across.py`)."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl.app import UsageError

from data.languages import BETWEEN
from data.objectives import OBJECTIVES
from ground.addresses import shown
from modeling.computation import LANGUAGES

if TYPE_CHECKING:
    from commands.records import Records
    from commands.session import Session
    from data.reading import PretrainingDataset
    from data.spoken import Spoken
    from modeling.config import Config
    from tasks.across import Across, Pseudo
    from tasks.losses import Loss


def across_of(options: Any, records: Records) -> Across:
    """Return how masked tokens are recovered from another text."""
    from tasks.across import Across

    return Across(
        mask=options.camlm_mask,
        computation=options.camlm_computation,
        positions=options.camlm_positions,
        languages=records.signal,
    )


def with_signal(options: Any, parts: Mapping[str, Records]) -> Mapping[str, Records]:
    """Return the records of every objective with the languages that their tokens say, if --language_signal asks for it.

    The languages are those of all records of the run, so that one model has a vector for each.

    Raises:
        UsageError: records do not say their language, pseudo sentences have no other, or not the one that is asked for.
    """
    from data.spoken import Languages

    if not options.language_signal:
        return parts
    texts = [text for part in parts.values() for text in (*part.training_languages, *part.held_out_languages)]
    named = {code for text in texts for code in text.split(BETWEEN)}
    signal = tuple(sorted(named - {""}))
    check_signal(options, parts, signal)
    numbers = {code: number for number, code in enumerate(signal)}
    found = {}
    for name, part in parts.items():
        row, said = OBJECTIVES[name], {}
        for text in {*part.training_languages, *part.held_out_languages} if row.has_queries else ():
            own, *second = text.split(BETWEEN)
            asked = [options.pseudo_language] if options.pseudo_language not in (None, own) else signal
            others = [code for code in asked if code != own] if row.writes else second or [own]
            said[text] = Languages(numbers[own], tuple(numbers[code] for code in others))
        found[name] = dataclasses.replace(part, signal=signal if row.has_queries else (), said=said)
    return found


def check_signal(options: Any, parts: Mapping[str, Records], signal: Sequence[str]) -> None:
    """Raise `UsageError` where tokens cannot say what language they are to be of; `signal` are those of all records."""
    wanted = options.pseudo_language
    for name, part in parts.items():
        row = OBJECTIVES[name]
        if row.has_queries and "" in part.training_languages:
            kind = "en-zh=TEXT:TEXT" if row.across else "en=TEXT,zh=TEXT"
            raise UsageError(
                f"--language_signal=True but the records of {name} do not say their language: make them with "
                f"create_pretraining_data.py --input_file={kind}"
            )
    if wanted is not None and wanted not in signal:
        raise UsageError(
            f"--pseudo_language={wanted} but the records are of {', '.join(signal)}: give one of these, or records of "
            f"{wanted} too"
        )
    if len(signal) < 2 and any(OBJECTIVES[name].writes for name in parts):
        raise UsageError(
            f"--language_signal=True but all records are of {', '.join(signal)}, so that no pseudo sentence can be of "
            "another language: give --input_file records of others too"
        )


def check_vectors(tensors: Collection[str], options: Any, signal: Sequence[str]) -> None:
    """Raise `UsageError` where weights and flags do not agree about what says the language of a token.

    Args:
        tensors: names of those of the weights, ours.
        options: of the run.
        signal: the languages that the model says.
    """
    has = sorted(name.removeprefix(f"{LANGUAGES}/") for name in tensors if name.startswith(f"{LANGUAGES}/"))
    absent = [code for code in signal if code not in has]
    got = f"vectors of {', '.join(has)}" if has else "no vectors of languages"
    rows = [OBJECTIVES[name] for name in options.shares]
    if not options.do_train and has and not signal and any(row.has_queries for row in rows):
        raise UsageError(f"the weights have {got}, which are not read without --language_signal=True: give it")
    learns = options.do_train and (options.allow_any_start or any(row.across for row in rows))
    if absent and not learns:
        raise UsageError(
            f"--language_signal=True needs a vector of {', '.join(absent)}, but the weights have {got}, and only camlm "
            "learns them: give weights that learnt camlm with --language_signal=True on these languages"
        )


def pseudo_of(options: Any, records: Records) -> Pseudo | None:
    """Return how the model writes sentences; None where the objective has none.

    Raises `UsageError` where the records do not say which ids are special, or hold more than masked text.
    """
    from data.forms import FORMS
    from data.manifest import mask_vocabulary_from_json
    from tasks.across import Pseudo

    row = OBJECTIVES[records.objective]
    if not row.writes:
        return None
    if records.shuffled or records.training.form is not FORMS[row.form]:
        held = "shuffled words" if records.shuffled else "several sequences a row"
        raise UsageError(
            f"--objective={records.objective} rebuilds a text from its masked tokens, but the records hold {held}: "
            "make others without --trigram_rate and --pack_sequences"
        )
    found = (records.training.manifest or {}).get("mask_vocabulary")
    if found is None:
        raise UsageError(
            f"--objective={records.objective} writes [MASK] itself, but the records do not say which id that is: make "
            f"them with --objective={records.objective}, or with --masking=dynamic"
        )
    vocabulary = mask_vocabulary_from_json(found)
    return Pseudo(
        mask_id=vocabulary.mask_id,
        special_ids=tuple(np.flatnonzero(vocabulary.special).tolist()),
        length_ratio=options.pseudo_length_ratio,
        pick=options.pseudo_pick,
        languages=records.signal,
    )


def with_sentences(session: Session, options: Any, records: Records, loss: Loss) -> tuple[Records, str]:
    """Return the records with what the weights that the run begins with write beside their texts, and a line about it.

    What a run from the same weights wrote before is taken from the cache.

    Args:
        session: whose model has these weights.
        options: of the run.
        records: of an objective that writes.
        loss: of the objective.
    """
    from data import pseudo_sentences
    from data.pseudo_sentences import PSEUDO, BesideWritten
    from data.spoken import Languages, Spoken
    from ground.progress import Progress
    from serving.programs import Programs

    if session.rows_of_process()[1] > 1:
        raise UsageError("--cached_pseudo=True writes in one process, but this run has several: leave it out")
    side = records.training.form.sides[0]

    def prepared(model: Any, batch: Any) -> Mapping[str, Any]:
        found = loss.prepare(model, batch, None)
        return {name: found[name] for name in (PSEUDO, "pseudo_mask")}

    def write(batches: Iterable[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for found in Programs(prepared, session.engine.model, of_shape=True).predict(batches):
            yield found[PSEUDO], found["pseudo_mask"].sum(axis=1)

    asked: list[PretrainingDataset | Spoken] = []
    for language, dataset in records.training_languages.items():
        said = records.said.get(language)
        asked += [Spoken(dataset, Languages(said.own, (other,))) for other in said.others] if said else [dataset]

    def texts(progress: Progress) -> Iterator[Mapping[str, np.ndarray]]:
        done = 0
        for each in asked:
            for batch in each.evaluation_batches(options.eval_batch_size):
                yield batch
                done += int((batch[side.mask].sum(axis=1) > 0).sum())
                progress.update(done)

    key = key_of_writer(session, options, records)
    former = pseudo_sentences.read(key)
    with Progress(sum(each.num_examples for each in asked), "texts", "pseudo sentences") as progress:
        sentences, count = pseudo_sentences.write_all(texts(progress), side, former, write)
    if count:
        pseudo_sentences.keep(key, sentences)
    width = written(options, records, session.config)
    told = f"{len(sentences):,} are known, of which {count:,} are written now"
    beside = partial(BesideWritten, side=side, sentences=sentences, width=width)
    return dataclasses.replace(records, beside_written=beside), told


def key_of_writer(session: Session, options: Any, records: Records) -> str:
    """Return the digest of all that decides what is written: weights, shape, length rule, precision, backend, code."""
    import keras

    import modeling
    import tasks.across
    from data.teacher_scores import key_of
    from modeling import named_variables

    sources = [*sorted(Path(modeling.__file__).parent.glob("*.py")), Path(tasks.across.__file__)]
    parts = {f"code {path.name}": path.read_bytes() for path in sources}
    parts["shape"] = session.config.to_json().encode()
    parts["rule"] = f"{pseudo_of(options, records)} {written(options, records, session.config)}".encode()
    parts["where"] = f"{keras.config.backend()} {options.precision}".encode()
    for name, variable in named_variables(session.engine.model).items():
        if name.startswith(("backbone/", "masked_lm/", f"{LANGUAGES}/")):
            value = np.asarray(variable)
            parts[f"weights {name} {value.shape}"] = hashlib.sha256(value.tobytes()).digest()
    return key_of(parts)


def written(options: Any, records: Records, config: Config) -> int:
    """Return how many tokens the model writes beside a text at most; raises `UsageError` where there is no room."""
    from tasks.across import pseudo_length

    if not OBJECTIVES[records.objective].writes:
        return 0
    return pseudo_length(records.training.max_seq_length, options.pseudo_length_ratio, config.max_sequence_length)


def lengths_read(options: Any, records: Records, config: Config) -> tuple[int, int]:
    """Return the tokens of an example's first row and of its second, 0 where it has one.

    Raises `UsageError` where the positions of two texts of one sequence are more than the model has.
    """
    row, training = OBJECTIVES[records.objective], records.training
    if row.across and options.camlm_positions == "continued":
        config.check_sequence_length(training.positions)
    if row.across and options.camlm_computation == "dense":
        return training.positions, 0
    return training.max_seq_length, training.max_other_length


def check_start(options: Any) -> None:
    """Raise `UsageError` where an objective would begin with weights that have not learnt what it builds on."""
    from training.checkpoints import list_checkpoints

    path = options.init_checkpoint
    asked = {name: OBJECTIVES[name].after for name in options.shares}
    # What is learnt beside it in one run need not have been learnt before.
    asked = {name: needed for name, needed in asked.items() if needed and needed not in asked}
    if not asked or not options.do_train or options.allow_any_start or list_checkpoints(Path(options.output_dir)):
        return
    learnt = "" if path is None else learnt_by(path)
    for name, needed in asked.items():
        if {needed, name} & {*re.findall(r"\w+", learnt)}:
            continue
        got = "there is no --init_checkpoint"
        if path is not None:
            says = f"learnt {learnt}" if learnt else "does not say what it learnt"
            got = f"--init_checkpoint={shown(path)} {says}"
        raise UsageError(
            f"--objective={name} writes sentences by what --objective={needed} learns, but {got}: give the "
            f"--output_dir of a run of {needed}, or --allow_any_start=True to begin all the same"
        )


def learnt_by(path: str) -> str:
    """Return the objective of the run that a checkpoint belongs to; empty where nothing says it."""
    from conversion.locating import locate
    from conversion.readers import Checkpoint
    from tasks.run_file import NAME, RunFile

    kind, where = locate(path)
    folders = Checkpoint({}, None, kind, where).folders
    folder = next((folder for folder in folders if (folder / NAME).is_file()), None)
    return "" if folder is None else RunFile.read(folder).objective
