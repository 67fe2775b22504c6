"""The row of datasets.toml that a run is about, and its files: what flags name, checked before anything slow begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from commands.needs import Need, check_needs
from ground.words import few_names

if TYPE_CHECKING:
    from commands.fine_tuning import FineTuningOptions
    from commands.session import Session
    from tasks.datasets import DatasetRow


def find_task(
    session: Session, options: FineTuningOptions, verb: str
) -> tuple[DatasetRow, dict[str, tuple[Path, ...]]]:
    """Return the row of --task_name and its files by split, as far as they are asked for.

    Raises:
        UsageError: nothing is asked for, the row is another verb's, or a file is missing.
    """
    from data.corpus.encodings import find_encoding
    from tasks.datasets import find_family, find_row
    from tasks.kinds import find_kind
    from tasks.sources import find_files

    task_file = Path(options.task_file) if options.task_file else None
    if family := find_family(options.task_name, task_file):
        return find_language_task(session, options, verb, family)
    row = find_row(options.task_name, task_file)
    check_one_language(options, row)
    if (right := find_kind(row.kind).verb) != verb:
        raise UsageError(f"--task_name={options.task_name} is a row of {row.kind}: run {right}.py")
    check_needs(options, needs_of_kinds(verb, row.kind))
    row = dataclasses.replace(row, encoding=find_encoding(options.encoding or row.encoding), asked=asked(options, row))
    row = with_row_flags(session, options, row)
    evaluates = options.do_train or options.do_eval or exports(options)
    wanted = {
        "train": options.do_train or (evaluates and options.dev_share),
        "dev": evaluates and not options.dev_share,
        "test": options.do_predict,
    }
    chosen = [split for split, is_wanted in wanted.items() if is_wanted]
    given = {split: path for split, path in given_files(options).items() if split in chosen}
    searched = [split for split in chosen if split not in given]
    row, files = session.together(lambda: find_files(without_counts(row, given), options.data_dir, searched))
    files |= {split: (path,) for split, path in given.items()}
    if options.dev_share:
        session.together(lambda: refuse_dev_file(options, row))
    if getattr(options, "languages", ()):
        files = session.together(lambda: of_languages(options, row, files))
    row = session.together(lambda: settled(session, options, row, files))
    best_metric(options, row)
    return row, files


def exports(options: Any) -> bool:
    """Return whether a model is to be written, whose answers to the development file are then compared."""
    return getattr(options, "do_export", False)


def given_files(options: Any) -> dict[str, Path]:
    """Return the file of --test_data_path by the split that it stands for: test, or all where there is no --data_dir.

    Raises `UsageError` where it is not there, or no JSON lines.
    """
    if not getattr(options, "test_data_path", None):
        return {}
    path = Path(options.test_data_path)
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        wrong = "it is not called so" if path.is_file() else "no such file"
        raise UsageError(f"--test_data_path={path}: {wrong}; expected a .json or .jsonl file, an object a line")
    return dict.fromkeys(("test",) if options.data_dir else ("train", "dev", "test"), path)


def without_counts(row: DatasetRow, splits: Collection[str]) -> DatasetRow:
    """Return the row without the sizes of released files of some splits."""
    return dataclasses.replace(row, counts={name: count for name, count in row.counts.items() if name not in splits})


def with_row_flags(session: Session, options: Any, row: DatasetRow) -> DatasetRow:
    """Return the row with what flags of its kind say in place of its fields, and with what dev once decided.

    Raises:
        UsageError: what a flag says does not go with the row.
    """
    from tasks.datasets import complaint_of
    from tasks.kinds import find_kind, row_flags_of

    kind = find_kind(row.kind)
    given = {field: getattr(options, name) for name, field in row_flags_of(kind).items()}
    given = {field: value for field, value in given.items() if value not in (None, ())}
    if not options.do_train:
        given = kept_of_run(options, row, getattr(kind, "kept", ())) | given
    if hasattr(kind, "tuned") and not options.do_train and "threshold" not in given:
        given |= {"threshold": next((former.threshold for former in former_rows(options, row)), row.threshold)}
    row = dataclasses.replace(row, **given)
    if complaint := complaint_of(row):
        raise UsageError(f"--task_name={row.name} with these flags {complaint}")
    alone = options.do_eval and not options.do_train and getattr(kind, "complete", lambda row: False)(row)
    if alone and not has_files(row, options.data_dir, "dev"):
        session.say(f"no development file in {options.data_dir}: --do_eval scores the test file")
        row = dataclasses.replace(row, files={**row.files, "dev": row.files.get("test", ())})
    return row


def kept_of_run(options: Any, row: DatasetRow, fields: Collection[str]) -> dict[str, Any]:
    """Return what a finished run of the task has decided of its row, as the method by which it was trained."""
    former = next(iter(former_rows(options, row)), None) if fields else None
    return {name: value for name in fields if (value := getattr(former, name, None))}


def has_files(row: DatasetRow, data_dir: str, split: str) -> bool:
    """Return whether there are files of a split."""
    from tasks.sources import find_files

    try:
        return bool(find_files(row, data_dir, [split])[1])
    except UsageError:
        return False


def former_rows(options: Any, row: DatasetRow) -> list[DatasetRow]:
    """Return the row of the same task as finished runs have it: of the output folder's, and of that of the weights."""
    from tasks.run_file import NAME, RunFile

    weights = Path(options.init_checkpoint) if options.init_checkpoint else None
    # Weights lie in the run folder, in its best/ or in its checkpoints/step_N/.
    folders = (Path(options.output_dir), *((weights, *list(weights.parents)[:2]) if weights else ()))
    found = [RunFile.read(folder).row for folder in folders if (folder / NAME).is_file()]
    return [former for former in found if former and former.name == row.name]


def of_languages(options: Any, row: DatasetRow, files: Mapping[str, Sequence[Path]]) -> dict[str, tuple[Path, ...]]:
    """Return the files of --languages, by the ends of their names; raises `UsageError` for one that none has."""
    from tasks.languages import checked_languages
    from tasks.readers.aligned import CODES, language_of

    found: dict[str, tuple[Path, ...]] = {}
    for split, paths in files.items():
        ends = {path: language_of(path) for path in paths}
        known = dict.fromkeys(each for end in ends.values() for each in (end, CODES.get(end, end)))
        wanted = checked_languages("languages", options.languages, known, row.name)
        found[split] = tuple(path for path, end in ends.items() if {end, CODES.get(end, end)} & {*wanted})
    return found


def find_language_task(
    session: Session, options: Any, verb: str, family: Mapping[str, DatasetRow]
) -> tuple[DatasetRow, dict[str, tuple[Path, ...]]]:
    """Return one row of a task in several languages, and its files by split and language; raises as `find_task`."""
    from data.corpus.encodings import find_encoding
    from tasks.kinds import find_kind, row_flags_of
    from tasks.languages import LanguageTask, checked_languages

    source = next(iter(family.values()))
    if (right := find_kind(source.kind).verb) != verb:
        raise UsageError(f"--task_name={options.task_name} is a row of {source.kind}: run {right}.py")
    check_needs(options, needs_of_kinds(verb, source.kind))
    given = given_files(options)
    if given:
        of_file = source.source_language or source.language
        family = {**family, of_file: without_counts(family[of_file], given)}
        # There are no files of other languages.
        family = family if options.data_dir else {of_file: family[of_file]}
    check_several_languages(options, family)
    further = {"encoding": find_encoding(options.encoding or source.encoding), "asked": asked(options, source)}
    further |= {
        field: value
        for name, field in row_flags_of(find_kind(source.kind)).items()
        if (value := getattr(options, name)) not in (None, ())
    }
    task = LanguageTask(
        source.name.removesuffix(f"_{source.language}"),
        {language: dataclasses.replace(row, **further) for language, row in family.items()},
        checked_languages("languages", options.languages, family, options.task_name),
        options.task_type or "",
        language_options(options, source)["selection"],
    )
    wanted = {
        "train": options.do_train,
        "dev": options.do_train or options.do_eval or exports(options),
        "test": options.do_predict,
    }
    chosen = [split for split, is_wanted in wanted.items() if is_wanted]
    strict = bool(options.languages)
    row, files = session.together(lambda: task.find(options.data_dir, chosen, strict=strict, given=given))
    if hasattr(find_kind(row.kind), "tuned") and not options.do_train and options.threshold is None:
        row = with_thresholds(row, former_rows(options, row))
    training = {"train": tuple(path for split, paths in files.items() if split.startswith("train") for path in paths)}
    row = session.together(lambda: settled(session, options, row, training if options.do_train else files))
    best_metric(options, row)
    return row, files


def with_thresholds(row: DatasetRow, former: Sequence[DatasetRow]) -> DatasetRow:
    """Return the row with the thresholds that a former run has found, by language."""
    known = {
        language: {"threshold": own["threshold"]}
        for each in reversed(former)
        for language, own in each.by_language.items()
        if "threshold" in own
    }
    languages = {language: {**own, **known.get(language, {})} for language, own in row.by_language.items()}
    return dataclasses.replace(row, by_language=languages)


def check_several_languages(options: Any, family: Mapping[str, DatasetRow]) -> None:
    """Raise `UsageError` for flags that do not go with a task in several languages."""
    from tasks.languages import ALL, TRANSLATED, checked_languages

    names, source = ", ".join(family), next(iter(family.values())).source_language
    if options.do_train and not options.task_type:
        raise UsageError(
            f"--task_name={options.task_name} is several tasks: give {options.task_name}_X, X one of {names}, or "
            "--task_type, to train for all"
        )
    if getattr(options, "method", None):
        raise UsageError(
            f"--method={options.method} with --task_name={options.task_name}: a prompt is of one language; give "
            f"--task_name={options.task_name}_X, X one of {names}"
        )
    if options.plug_in and options.do_train and options.task_type != TRANSLATED:
        raise UsageError(
            f"--plug_in with --task_type={options.task_type}: an example is read beside its translation, which only "
            f"--task_type={TRANSLATED} has"
        )
    if options.do_train and source not in family:
        raise UsageError(f"--task_name={options.task_name} has no source_language among {names}: write it into the row")
    if options.dev_share:
        raise UsageError(
            f"--dev_share={options.dev_share} with --task_name={options.task_name}: translations of what is held out "
            "would train; give development files"
        )
    if ":" in options.data_dir and not Path(options.data_dir).exists():
        raise UsageError(
            f"--data_dir={options.data_dir} with --task_name={options.task_name}: several languages are read from a "
            f"folder; give one, or --task_name={options.task_name}_X, X one of {names}"
        )
    if options.selection_language not in (None, ALL):
        checked_languages("selection_language", [options.selection_language], family, options.task_name)


def check_one_language(options: Any, row: DatasetRow) -> None:
    """Raise `UsageError` for flags of tasks in several languages."""
    from tasks.datasets import find_family

    several = row.name.removesuffix(f"_{row.language}") if row.language else ""
    for name in ("task_type", "languages", "selection_language", "plug_in"):
        value = getattr(options, name, None)
        if value and not (name == "languages" and row.format == "aligned"):
            task_file = Path(options.task_file) if options.task_file else None
            known = several if several and find_family(several, task_file) else "xnli"
            value = ",".join(value) if isinstance(value, tuple) else value
            raise UsageError(
                f"--{name}={value} does nothing for --task_name={row.name}, which is one task; leave it out, or give "
                f"a task in several languages, as --task_name={known}"
            )


def language_options(options: Any, row: DatasetRow) -> dict[str, Any]:
    """Return how a task in several languages is trained, and the language that selects.

    That is the source language; where this is not among those that train, their average.
    """
    from tasks.languages import ALL, TRANSLATED

    trained = options.languages if options.task_type == TRANSLATED else ()
    default = ALL if trained and row.source_language not in trained else row.source_language
    return {
        "strict": bool(options.languages),
        "task_type": options.task_type or "",
        "selection": options.selection_language or default,
    }


def best_metric(options: FineTuningOptions, row: DatasetRow) -> tuple[str, bool]:
    """Return the score that decides which weights are best, and whether less of it is better.

    `eval_accuracy`, as transformers calls it, is accuracy. Raises `UsageError` for a score that the task has not.
    """
    from tasks.kinds import find_kind

    kind, asked_for = find_kind(row.kind), options.metric_for_best_model
    if asked_for is None:
        return row.metric, False
    name, smaller = asked_for.removeprefix("eval_"), getattr(kind, "smaller_is_better", ())
    if name not in (*kind.metrics, *smaller):
        known = ", ".join((*kind.metrics, *smaller))
        raise UsageError(f"--metric_for_best_model={asked_for}: expected one of {known}, or leave it out")
    complaint = getattr(kind, "complaint", lambda row: "")
    if name not in smaller and (wrong := complaint(dataclasses.replace(row, metric=name))):
        raise UsageError(f"--metric_for_best_model={asked_for}: --task_name={row.name} {wrong}")
    return name, name in smaller


def asked(options: Any, row: DatasetRow) -> dict[str, str]:
    """Return the names that flags of the verb give to columns, by column; raises `UsageError` for one it has not."""
    from tasks.kinds import find_kind

    known = find_kind(row.kind).columns
    wanted = {"text_column": "text_a", "text_pair_column": "text_b", "label_column": "label"}
    found = {}
    for name, column in wanted.items():
        if not (value := getattr(options, name, None)):
            continue
        if column not in known or column not in (*row.columns, *row.optional, "label"):
            raise UsageError(
                f"--{name}={value}: --task_name={row.name} has no such column; it has {', '.join(row.columns)}"
            )
        found[column] = value
    return found


def refuse_dev_file(options: FineTuningOptions, row: DatasetRow) -> None:
    """Raise `UsageError` where the task has a development file, which --dev_share would pass over."""
    from tasks.sources import find_files

    try:
        _, files = find_files(row, options.data_dir, ["dev"])
    except UsageError:
        return
    raise UsageError(
        f"--dev_share={options.dev_share}: {files['dev'][0]} holds the development examples; leave the flag out"
    )


def settled(
    session: Session, options: FineTuningOptions, row: DatasetRow, files: Mapping[str, Sequence[Path]]
) -> DatasetRow:
    """Return the row with the columns and labels that are found in the files, where it leaves them to these.

    Labels come from the training file; a run without one has those of the run that made its weights.
    """
    from tasks.found_labels import with_columns
    from tasks.kinds import find_kind
    from tasks.sources import find_files

    if files:  # --do_interactive alone reads none
        row = with_columns(row, next(iter(files.values()))[0])
    find_labels = getattr(find_kind(row.kind), "find_labels", None)
    if row.labels or not find_labels:
        return row
    if not options.do_train:
        for former in former_rows(options, row):
            if former.labels:
                return dataclasses.replace(row, labels=former.labels)
    train = files.get("train") or find_files(row, options.data_dir, ["train"])[1]["train"]
    row = dataclasses.replace(row, labels=find_labels(row, train))
    session.say(f"{len(row.labels):,} labels in {few_names(map(str, train))}: {few_names(row.labels)}")
    return row


def needs_of_kinds(verb: str, kind: str) -> tuple[Need, ...]:
    """Return what the flags need that only some kinds of task take."""
    from tasks.kinds import flags_of_verb

    return tuple(
        Need((name,), f"a --task_name of the kind {' or '.join(kinds)}", lambda o, kinds=kinds: kind in kinds)
        for name, kinds in flags_of_verb(verb).items()
    )
