"""Judge what a verb answered to a case: what has to hold of every answer, and what of the one that is expected."""

from __future__ import annotations

import dataclasses
import re
import signal

from ground.outputs import RECORD
from tests.hostile.case import Case
from tests.hostile.sandbox import Observation

CLEAN = ("refused", "succeeded")
FAULTS = (
    "input changed",
    "crash",
    "hang",
    "traceback",
    "left-overs",
    "process left",
    "silent",
    "refused what is right",
    "odd code",
    "many lines",
    "unclear",
    "broken case",
)
"""The worst first: the first that a case shows is what it is counted as; the last is a mistake of the generator."""
_LONGEST = 5100
_SIGNALLED = (130, 141, 143)
# Progress is written over itself, a line of several states.
_PROGRESS = re.compile(r"\s*(decoding|reading|writing|joining|held out|training|looking|checking|compiling)\b|.*\r")
# What a server says while it starts and ends.
_SAID = re.compile(r"serve\.py: (listening on |whoever reaches |[\w-]{1,64}: version |ready$|stopped: )")
# What a run shows before it trains.
_PREAMBLE = re.compile(r"(model|memory|device|weights|data|step|output|child|lock)\b")
# Native libraries write about their compiler and their devices whatever level of words they are told.
_NATIVE = re.compile(r"[IWE]\d{4} |\d{4}-\d\d-\d\d \d\d:\d\d|WARNING: All log messages before|.*\bcpu_feature_guard\b")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a case is counted as, and everything that is wrong with it."""

    outcome: str
    faults: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not self.faults


def judge(case: Case, seen: Observation) -> Verdict:
    """Return the verdict; the faults begin with their kind, then come details."""
    found = [*_of_the_end(seen), *_of_the_files(case, seen), *_of_the_answer(case, seen)]
    if seen.strays:
        found.append("process left: a process outlives the call")
    kinds = [fault.split(":")[0] for fault in found]
    if not found:
        return Verdict("refused" if refused(case, seen) else "succeeded")
    return Verdict(min(kinds, key=FAULTS.index), tuple(found))


def judge_killed(case: Case, seen: Observation) -> Verdict | None:
    """Return the verdict on a call that was to be killed; None where it was, and everything that it reads is left."""
    if seen.code not in (-signal.SIGKILL, -signal.SIGALRM):
        return judge(case, seen)
    found = [
        f"input changed: {name} {'is gone' if name not in seen.after else 'has other content'} by a kill"
        for name, content in seen.before.items()
        if seen.after.get(name) != content and not name.startswith(case.outputs)
    ]
    found += [
        f"left-overs: {name}" for name in seen.after if name not in seen.before and not name.startswith(case.outputs)
    ]
    if seen.strays:
        found.append("process left: a process outlives the call")
    return Verdict(min((fault.split(":")[0] for fault in found), key=FAULTS.index), tuple(found)) if found else None


def message_lines(case: Case, seen: Observation) -> list[str]:
    """Return the lines of stderr that a person reads as an answer."""
    lines = [line.strip() for line in seen.stderr.splitlines() if line.strip()]
    return [line for line in lines if line.startswith(f"{case.verb}.py: ") and not _SAID.match(line)]


def refused(case: Case, seen: Observation) -> bool:
    """Whether the call ended with a message, or with the finding of damage."""
    return bool(seen.code) and bool(message_lines(case, seen) or seen.code == 1)


def _of_the_end(seen: Observation) -> list[str]:
    if seen.code is None:
        return [f"hang: stopped after {seen.seconds:.0f} s"]
    if seen.code < 0:
        return [f"crash: signal {-seen.code}"]
    if "Traceback (most recent call last)" in seen.stderr:
        return [f"traceback: {last_line(seen.stderr)}"]
    return [] if seen.code in (0, 1, 2, *_SIGNALLED) else [f"odd code: {seen.code}"]


def last_line(text: str) -> str:
    """Return the last line that says anything."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _of_the_files(case: Case, seen: Observation) -> list[str]:
    """Return what happened to files that had to stay, and what was left where nothing may be."""
    found = []
    contents = set(seen.after.values())
    begun = _had_begun(seen)
    for name, content in seen.before.items():
        if seen.after.get(name) == content:
            continue
        mine = name.startswith(case.outputs) and case.outputs
        # A refusal changes nothing; a repair keeps the damaged file under another name.
        if mine and (seen.code == 0 or begun or content in contents or case.verb == "inspect_records"):
            continue
        found.append(f"input changed: {name} {'is gone' if name not in seen.after else 'has other content'}")
    new = [name for name in seen.after if name not in seen.before and not _may_stay(name, seen)]
    # A run that had begun to train leaves what it goes on from.
    complete = seen.code == 0 or begun
    strange = [name for name in new if not (complete and case.outputs and name.startswith(case.outputs))]
    if strange and seen.code is not None and not _is_a_finding(case, seen):
        found.append(f"left-overs: {', '.join(strange[:4])}{' ...' * (len(strange) > 4)}")
    return found


def _had_begun(seen: Observation) -> bool:
    """Whether a run ended after it had begun to train."""
    return bool(seen.code) and "\ntraining  " in seen.stderr


def _may_stay(name: str, seen: Observation) -> bool:
    """Whether a file may be left: a lock is taken anew, an empty folder is nobody's loss.

    A verb that succeeds notes what it wrote beside it. Exit 1 is a full disk or a file that went away: when that is
    mended, the job goes on from its unfinished work.
    """
    left = (seen.code == 0 and name.endswith(RECORD)) or (seen.code == 1 and ".partial/" in name)
    return left or name.endswith((".lock", "/"))


def _is_a_finding(case: Case, seen: Observation) -> bool:
    """Whether exit 1 is the outcome of complete work: damaged records, a plan that does not fit, unequal outputs."""
    return seen.code == 1 and not message_lines(case, seen)


def _of_the_answer(case: Case, seen: Observation) -> list[str]:
    if seen.code is None or seen.code < 0 or "Traceback (most recent call last)" in seen.stderr:
        return []
    if seen.code == 0:
        told = any(name in seen.stdout + seen.stderr for name in case.names)
        if case.expect == "refuse" or (case.expect == "refuse or name" and not told):
            return [f"silent: exit 0; {last_line(seen.stdout)}"]
        return []
    if case.expect == "succeed":
        return [f"refused what is right: {last_line(seen.stderr)}"]
    if _is_a_finding(case, seen):
        return [] if seen.stdout.strip() else ["unclear: exit 1 without a word"]
    return _of_the_message(case, seen)


def _of_the_message(case: Case, seen: Observation) -> list[str]:
    """Return what is wrong with the words of a refusal: one line, which names the thing and the way out."""
    lines = message_lines(case, seen)
    others = [
        line
        for line in seen.stderr.split("\n")
        if line.strip()
        and not (line.strip() in lines or any(each.match(line) for each in (_PROGRESS, _PREAMBLE, _NATIVE, _SAID)))
    ]
    if len(lines) != 1 or (others and not _had_begun(seen)):
        return [f"many lines: {len(lines)} messages and {len(others)} further lines, {last_line(seen.stderr)}"]
    words = lines[0].removeprefix(f"{case.verb}.py: ")
    # A message may repeat what was typed, however long.
    if len(words) > 1500 + _LONGEST:
        return [f"unclear: a line of {len(words):,} characters"]
    if not re.search("[:;,]", words) or not any(name in words for name in case.names):
        return [f"unclear: {words[:300]}"]
    return []
