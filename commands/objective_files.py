"""Which record files each objective of a run learns from: by their manifests, or as --input_file says.

Example:
    --objective=masked_lm,tlm --input_file='text/*.tfrecord,pairs/*.tfrecord'      by their manifests
    --objective=masked_lm,tlm --input_file='masked_lm=a.tfrecord,tlm=b.tfrecord'   as they are named
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from glob import glob
from typing import TYPE_CHECKING, Any

from absl.app import UsageError

from data.objectives import OBJECTIVES, same_records
from ground.words import nearest

if TYPE_CHECKING:
    from data.shards import Shards

# A word before an equals sign; a file that has one in its name is found as it is.
_NAMED = re.compile(r"([A-Za-z]\w{0,39})=(.+)", re.DOTALL)


def files_of_objectives(patterns: Sequence[str], objectives: Sequence[str], flag: str) -> dict[str, Shards]:
    """Return the record files of every objective.

    A file belongs to the objective that is named before it, `NAME=PATTERN`; else to the one that its manifest says it
    was made for. An objective for which none was made takes those of another whose records are the same.

    Args:
        patterns: of the files.
        objectives: of the run.
        flag: that gives the patterns, for messages.

    Raises:
        UsageError: a pattern matches nothing, a name is none of the run's objectives, several objectives are learnt and
            one has no files or a file is of none.
    """
    from data.shards import Shards

    parts = [part.strip() for pattern in patterns for part in pattern.split(",") if part.strip()]
    taken = [_taken_apart(part, objectives, flag) for part in parts]
    if len(objectives) == 1:
        shards = Shards.find([pattern for _, pattern in taken], flag)
        named = any(name for name, _ in taken)
        return {objectives[0]: shards.where(_can_be_read_by(objectives[0], flag)) if named else shards}
    found = {
        name: Shards.find(own, flag).where(_can_be_read_by(name, flag))
        for name in objectives
        if (own := [pattern for named, pattern in taken if named == name])
    }
    if free := [pattern for named, pattern in taken if not named]:
        found |= _by_manifests(Shards.find(free, flag), objectives, found, flag)
    if missing := [name for name in objectives if name not in found]:
        raise UsageError(
            f"{flag}: no records of {missing[0]}; expected some for each of {', '.join(objectives)}: make them with "
            f"create_pretraining_data.py --objective={missing[0]}, or name files that serve it, {missing[0]}=FILES"
        )
    return {name: found[name] for name in objectives}


def is_named(patterns: Sequence[str]) -> bool:
    """Whether an objective is named before some files."""
    return any(_before(part.strip()) for pattern in patterns for part in pattern.split(","))


def _before(pattern: str) -> re.Match[str] | None:
    """Return what is named before a pattern, and the pattern behind it."""
    named = _NAMED.fullmatch(pattern)
    return None if named is None or glob(pattern, recursive=True) else named  # noqa: PTH207 (as `data.shards`)


def _taken_apart(pattern: str, objectives: Sequence[str], flag: str) -> tuple[str, str]:
    """Return the objective that is named before a pattern, if one is, and the pattern."""
    named = _before(pattern)
    if named is None:
        return "", pattern
    if named[1] not in objectives:
        raise UsageError(
            f"{flag}={pattern}: {named[1]!r} is no objective of this run; the nearest is "
            f"{nearest(named[1], objectives)}; expected one of --objective, {', '.join(objectives)}, before the files"
        )
    return named[1], named[2]


def _can_be_read_by(objective: str, flag: str) -> Any:
    """Return a filter that keeps all manifests, but raises `UsageError` for records that the objective cannot read."""

    def keep(manifest: Mapping[str, Any] | None) -> bool:
        made_for = objective if manifest is None else manifest["objective"]
        row, own = OBJECTIVES.get(made_for), OBJECTIVES[objective]
        if made_for != objective and (row is None or (row.form, row.labels) != (own.form, own.labels)):
            raise UsageError(
                f"{flag}={objective}=...: the records were made with --objective={made_for}, whose examples "
                f"{objective} cannot learn from: make others with --objective={objective}"
            )
        return True

    return keep


def _by_manifests(
    shards: Shards, objectives: Sequence[str], named: Mapping[str, Shards], flag: str
) -> dict[str, Shards]:
    """Return the files of objectives by what their manifests say, joined to those that were named."""
    made_for = {path: shards.listings[path].manifest["objective"] for path in shards.paths if path in shards.listings}
    for path in shards.paths:
        if path not in made_for:
            raise UsageError(
                f"{flag}: {path} has no manifest that says which objective it was made for: name it, as "
                f"{objectives[0]}={path}"
            )
    found: dict[str, Shards] = {}
    used: set[str] = set()
    for objective in objectives:
        made = {objective} & {*made_for.values()}
        if not made and objective not in named:
            made = {name for name in made_for.values() if same_records(objective, name)}
        used |= made
        if made:
            own = shards.where(lambda manifest, made=made: manifest is not None and manifest["objective"] in made)
            found[objective] = own.joined(named[objective]) if objective in named else own
    if of_none := [path for path in shards.paths if made_for[path] not in used]:
        path = of_none[0]
        raise UsageError(
            f"{flag}: {path} was made with --objective={made_for[path]}, which is none of {', '.join(objectives)}: "
            f"leave it out, or learn {made_for[path]} too"
        )
    return found
