"""A task whose files come in several languages: which of them train, which one selects, results by language (XTREME, Hu
et al. 2020; the names of the two ways to train are those of ERNIE-M's script).

Rows of datasets.toml that `variants = { language = [...] }` makes are one task here. Differs from ERNIE-M's script in
that every evaluation of a training run reads the language that selects alone, and all languages are scored at its end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl.app import UsageError

from ground.words import few_names, nearest
from tasks.datasets import SPLITS, DatasetRow, Examples, NoExampleError, find_split
from tasks.kinds import Scores
from tasks.splits import Splits, Table

TRANSFER, TRANSLATED = "cross-lingual-transfer", "translate-train-all"
TASK_TYPES = (TRANSFER, TRANSLATED)
ALL = "all"
# What tells the row of one language from that of the others without a difference in how a file is read.
_NAMES = ("name", "language", "files", "counts", "submission")
Files = dict[str, tuple[Path, ...]]


def checked_languages(flag: str, asked: Sequence[str], known: Collection[str], task_name: str) -> tuple[str, ...]:
    """Return the languages that are asked for, each once, or all; raises `UsageError` for one that is not known."""
    for language in asked:
        if language not in known:
            near = f"did you mean {nearest(language, known)!r}? " if known else ""
            raise UsageError(
                f"--{flag}={','.join(asked)}: {language!r} is no language of --task_name={task_name}; "
                f"{near}it has {', '.join(known)}"
            )
    return tuple(dict.fromkeys(asked)) or tuple(known)


@dataclasses.dataclass(frozen=True)
class LanguageTask:
    """A task in several languages and what is asked of it.

    Attributes:
        name: of the task, as `xnli`.
        family: its rows by language.
        languages: that are asked for.
        task_type: one of TASK_TYPES; empty where nothing is trained.
        selection: the language whose development file selects the weights, or ALL.
    """

    name: str
    family: Mapping[str, DatasetRow]
    languages: tuple[str, ...]
    task_type: str
    selection: str

    @property
    def plugs_in(self) -> bool:
        """Whether every language is read beside the source."""
        return self.family[self.source].plug_in

    @property
    def source(self) -> str:
        """The language of the data that the others are translated from; the first where there is no such data."""
        first = next(iter(self.family.values()))
        return first.source_language or first.language

    def languages_of(self, split: str, trains: bool) -> tuple[str, ...]:
        """Return the languages whose files of a split are wanted."""
        if split == "train" and self.task_type == TRANSFER:
            return (self.source,)
        selects = trains and split == "dev" and self.selection != ALL
        return tuple(
            dict.fromkeys(
                (*self.languages, *((self.selection,) if selects else ()), *((self.source,) if self.plugs_in else ()))
            )
        )

    def find(
        self, data_dir: str, wanted: Sequence[str], *, strict: bool, given: Mapping[str, Path] = MappingProxyType({})
    ) -> tuple[DatasetRow, Files]:
        """Return one row for all languages, and the files by split and language: `dev_fr`.

        A language that lacks a file is left out, unless it trains or selects alone.

        Args:
            data_dir: the folder.
            wanted: train, dev or test.
            strict: whether every language of `languages` has to have a file to be scored on.
            given: files of the source language that stand for those of a split in all languages.

        Raises:
            UsageError: there is no file of a split, or none that is needed; the message names the candidates.
        """
        files: Files = {}
        complaints: dict[str, UsageError] = {}
        for split in (split for split in SPLITS if split in wanted):
            if split in given:
                files[f"{split}_{self.source}"] = (given[split],)
                continue
            for language in self.languages_of(split, "train" in wanted):
                try:
                    files[f"{split}_{language}"] = self._own_files(language, Path(data_dir), split)
                except UsageError as error:
                    complaints[f"{split}_{language}"] = error
            found = [name.partition("_")[2] for name in files if name.startswith(f"{split}_")]
            if not found or (split == "dev" and "train" in wanted and self.selection not in (ALL, *found)):
                needed = f"{split}_{self.selection if split == 'dev' else self.source}"
                raise complaints.get(needed) or next(iter(complaints.values()))
            if split == "train" and self.task_type == TRANSLATED and found == [self.source] != [*self.languages]:
                raise next(each for name, each in complaints.items() if name.startswith("train_"))
        for language in self.languages if strict and {*wanted} - {"train"} else ():
            lacking = [each for name, each in complaints.items() if name in (f"dev_{language}", f"test_{language}")]
            if lacking and not {f"dev_{language}", f"test_{language}"} & files.keys():
                raise lacking[0]
        return self._row(files), files

    def _own_files(self, language: str, data_dir: Path, split: str) -> tuple[Path, ...]:
        """Return the files of one language; a file that is the source's too is not another language's."""
        row = self.family[language]
        paths = find_split(row, data_dir, split)
        candidates = [name for name in row.files[split] if name not in self.family[self.source].files[split]]
        if language == self.source or row.only or paths != _found(self.family[self.source], data_dir, split):
            return paths
        wanted = ", ".join(candidates) or f"none, since the row names no {split} file of its own"
        raise UsageError(
            f"--data_dir={data_dir} has no {split} file of {language!r} for --task_name={self.name}, {paths[0].name} "
            f"is that of {self.source!r}: expected {wanted}"
        )

    def _row(self, files: Files) -> DatasetRow:
        """Return the row of all languages: files, counts and what is handed in by split and language."""
        source = self.family[self.source]
        languages = dict.fromkeys(name.partition("_")[2] for name in files)
        named = [name for name in files if not name.startswith("train")]
        by_split = {name: self.family[name.partition("_")[2]] for name in named}
        handed_in = {
            name: row.submission["files"]["test"]
            for name, row in by_split.items()
            if name.startswith("test") and "test" in row.submission.get("files", {})
        }
        return dataclasses.replace(
            source,
            name=self.name,
            language="",
            only={},
            files={split: names for split, names in source.files.items() if split == "train"}
            | {name: row.files[name.partition("_")[0]] for name, row in by_split.items()},
            counts={
                name: row.counts[name.partition("_")[0]]
                for name, row in by_split.items()
                if name.partition("_")[0] in row.counts
            },
            submission={**source.submission, "files": handed_in} if handed_in else {},
            by_language={language: _differences(source, self.family[language]) for language in languages},
        )


def _found(row: DatasetRow, data_dir: Path, split: str) -> tuple[Path, ...]:
    try:
        return find_split(row, data_dir, split)
    except UsageError:
        return ()


def _differences(source: DatasetRow, row: DatasetRow) -> dict[str, Any]:
    """Return the fields by which the files of a language are read and scored otherwise than those of the source."""
    names = [field.name for field in dataclasses.fields(row) if field.name not in _NAMES]
    # The row of all languages reads every row of a file.
    return {
        name: getattr(row, name)
        for name in names
        if getattr(row, name) != getattr(source, name) or (name == "only" and row.only)
    }


class LanguageSplits(Splits):
    """The splits of a task in several languages: `train`, and `dev_fr`, `test_fr` of each language.

    Args:
        row: of all languages, see `LanguageTask.find`.
        files: by split and language.
        task_type: one of TASK_TYPES, or empty.
        selection: the language that selects, or ALL.
        strict: whether a file of several languages has to have rows of each; else those without are left out.

    Raises:
        UsageError: as `Splits` does, and where nothing in a file tells its languages apart.
    """

    def __init__(
        self,
        row: DatasetRow,
        files: Mapping[str, Sequence[Path]],
        *,
        task_type: str,
        selection: str,
        strict: bool = False,
    ):
        self.task_type, self.selection, self.strict = task_type, selection, strict
        super().__init__(row, files)
        self._check_apart(files)
        if row.plug_in:
            self._pair()
        trained = {name: self.examples.pop(name) for name in [*self.examples] if name.startswith("train")}
        self.balance = {_language(name): len(examples) for name, examples in trained.items()}
        if trained:
            self.examples["train"] = Examples.of(trained.values())

    def _check_apart(self, files: Mapping[str, Sequence[Path]]) -> None:
        """Raise `UsageError` where two languages have the same rows of one file."""
        first: dict[tuple[str, ...], str] = {}
        for split, examples in self.examples.items():
            paths = files[split]
            other = first.setdefault((split.partition("_")[0], *map(str, paths)), split)
            if other != split and list(self.examples[other]) == list(examples):
                columns = ", ".join(self.row_of(split).only) or "language"
                raise UsageError(
                    f"{paths[0]} has no column {columns!r} that tells {_language(other)!r} from {_language(split)!r}: "
                    f"give a file for each language, or one language (--task_name={self.row.name}_{_language(split)})"
                )

    def _pair(self) -> None:
        """Give every example the same one in another language: in the source, or of the source in the first other.

        The source trains as the partner of the others.

        Raises:
            UsageError: there is no other language, or rows are not translations of each other.
        """
        source = self.row.source_language
        paired: dict[str, Sequence[Any]] = {}
        for split, examples in self.examples.items():
            report, _, language = split.partition("_")
            others = [name for name in self.examples if name.startswith(f"{report}_") and name != split]
            partner = f"{report}_{source}" if language != source else next(iter(others), "")
            if partner not in self.examples:
                raise UsageError(
                    f"--plug_in: {report} of --task_name={self.row.name} has files of {language!r} alone; give those "
                    "of a second language, row by row"
                )
            self._check_aligned(split, partner)
            if report != "train" or language != source:
                pairs = zip(examples, self.examples[partner], strict=True)
                paired[split] = Examples(dataclasses.replace(own, partner=other) for own, other in pairs)
        self.examples = paired

    def _check_aligned(self, split: str, partner: str) -> None:
        """Raise `UsageError` where two languages have not the same labels, row by row."""
        labels, others = ([each.label for each in self.examples[name]] for name in (split, partner))
        fix = (
            f"rows have to be translations of each other; mend a file, or leave {_language(split)!r} out of --languages"
        )
        if len(labels) != len(others):
            raise UsageError(f"--plug_in: {split} has {len(labels):,} examples and {partner} {len(others):,}; {fix}")
        for number, (own, other) in enumerate(zip(labels, others, strict=True), start=1):
            if own != other:
                raise UsageError(
                    f"--plug_in: example {number:,} is {own!r} in {split} and {other!r} in {partner}; {fix}"
                )

    def read(self, split: str, paths: Sequence[Path]) -> Examples | None:
        """Return the examples of one language; None for one that the files of several languages have not."""
        try:
            return super().read(split, paths)
        except NoExampleError:
            if self.strict or _language(split) in (self.selection, self.row.source_language):
                raise
            return None

    def row_of(self, split: str) -> DatasetRow:
        """Return the row as the files of the split's language are read and scored."""
        language = _language(split)
        return self.row.of_language(language) if language else self.row

    def tune(self, split: str, answers: Sequence[Any], examples: Sequence[Any]) -> None:
        """Let the answers to dev of a language decide the threshold of this language."""
        if split.startswith("dev"):
            row = self.kind.tuned(self.row_of(split), answers, examples)  # pyright: ignore[reportAttributeAccessIssue]
            own = {**self.row.by_language[_language(split)], "threshold": row.threshold}
            languages = {**self.row.by_language, _language(split): own}
            self.row = dataclasses.replace(self.row, by_language=languages)

    @property
    def selecting(self) -> tuple[str, ...]:
        """The development files that select; where none does, all of them."""
        development = tuple(split for split in self.examples if split.startswith("dev"))
        return (f"dev_{self.selection}",) if f"dev_{self.selection}" in development else development or ("",)

    def selection_scores(self, answers: Mapping[str, Sequence[Any]]) -> Scores:
        """Return the scores of the language that selects, or the means over all."""
        return _means([self.scores(split, each) for split, each in answers.items()])

    @property
    def reports(self) -> dict[str, tuple[str, ...]]:
        """All languages of the development files are one report, and those of the test files."""
        found = {
            report: tuple(split for split in sorted(self.datasets) if split.startswith(f"{report}_"))
            for report in ("dev", "test")
        }
        return {report: splits for report, splits in found.items() if splits}

    def report_scores(self, report: str, found: Mapping[str, Scores]) -> Scores:
        """Return the scores of the language that selects under their usual names, and the main ones by language.

        Example: metric accuracy, source en, found en 0.8, fr 0.6, zh 0.4
            accuracy 0.8, accuracy_en 0.8, accuracy_fr 0.6, accuracy_zh 0.4, accuracy_average 0.6,
            accuracy_average_without_en 0.5, accuracy_transfer_gap 0.3
        """
        chosen = found.get(f"{report}_{self.selection}")
        result = dict(chosen) if chosen else _means([*found.values()])
        for name in getattr(self.kind, "by_language", (self.row.metric,)):
            values = {_language(split): scores[name] for split, scores in found.items()}
            result |= {f"{name}_{language}": value for language, value in values.items()}
            result[f"{name}_average"] = sum(values.values()) / len(values)
            source = self.row.source_language
            others = [value for language, value in values.items() if language != source]
            if source in values and others:
                result[f"{name}_average_without_{source}"] = without = sum(others) / len(others)
                result[f"{name}_transfer_gap"] = values[source] - without
        return result

    def report_names(self, report: str, scores: Scores) -> Scores:
        """Return the scores of dev by language under the names of ERNIE-M's script, as `eval_accuracy_fr`."""
        names = getattr(self.kind, "by_language", (self.row.metric,))
        told = {key: value for key, value in scores.items() if any(key.startswith(f"{name}_") for name in names)}
        return {f"eval_{key}": value for key, value in told.items()} if report == "dev" else {}

    def report_table(self, report: str, found: Mapping[str, Scores], scores: Scores) -> Table:
        """Return a line for each language, and one for their average."""
        means = _means([*found.values()])
        lines = {_language(split): each for split, each in found.items()} | {"average": means}
        return ["language", *means], [[name, *(f"{each[key]:.4f}" for key in means)] for name, each in lines.items()]

    def report_lists(self, report: str, answers: Mapping[str, Sequence[Any]]) -> dict[str, list]:
        """Return for dev who selected the weights, for test the answers one language after the other.

        In transfer the answers are those of the source alone, as ERNIE-M's script has them. `label_names` has the
        order of the numbers, `examples` how many each of the `languages` has.
        """
        if report == "dev":
            return {"selected_by": [_language(split) for split in self.selecting]} if self.balance else {}
        source = f"{report}_{self.row.source_language}"
        splits = [source] if self.task_type == TRANSFER and source in answers else [*answers]
        lists = [self.confidences(answers[split]) for split in splits]
        if not any(lists):
            return {}
        joined = {name: [value for each in lists for value in each[name]] for name in lists[0]}
        languages = [_language(split) for split in splits]
        sizes = [len(answers[split]) for split in splits]
        return {**joined, "label_names": [*self.row.labels], "languages": languages, "examples": sizes}

    @property
    def told(self) -> str:
        """Which languages train, which select, which are scored."""
        parts = [f"trained on {', '.join(self.balance)} ({self.task_type})"] if self.balance else []
        if self.balance:
            parts[0] += f", each beside {self.row.source_language}" if self.row.plug_in else ""
            selecting = [_language(split) for split in self.selecting]
            parts.append(f"best by {'the average of ' if len(selecting) > 1 else ''}dev of {few_names(selecting)}")
        scored = {_language(split): None for split in self.examples if split != "train"}
        return "; ".join([*parts, f"scored or predicted: {', '.join(scored)}"])

    @property
    def sizes(self) -> str:
        """The examples of every language, and the balance of those that train."""
        total = sum(self.balance.values())
        parts = []
        if total:
            balance = ", ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in self.balance.items())
            parts.append(f"train {total:,}: {balance}")
        for report in ("dev", "test"):
            sizes = [f"{_language(s)} {len(e):,}" for s, e in self.examples.items() if s.startswith(f"{report}_")]
            parts += [f"{report} {', '.join(sizes)}"] if sizes else []
        return f"{'; '.join(parts)} examples of {self.row.name}"


def _language(split: str) -> str:
    return split.partition("_")[2]


def _means(found: Sequence[Scores]) -> Scores:
    """Return the mean of every score that all have."""
    names = [name for name in found[0] if all(name in each for each in found)]
    return {name: sum(each[name] for each in found) / len(found) for name in names}
