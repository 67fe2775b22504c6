"""Command-line flags of the root verbs, declared once in a frozen dataclass; absl parses, errors are one line.

    @dataclass(frozen=True, kw_only=True)
    class Options:
        input_file: tuple[str, ...] = flag(help="record shards: paths or patterns, separated by commas")
        learning_rate: float = flag(5e-5, help="peak learning rate", minimum=0)

    if __name__ == "__main__":
        run(main, Options)

A `Group` in the class body is a heading of `--help`: the flags below it, up to the next one, belong to it.

    _training: ClassVar = Group.TRAINING

Only the standard library and absl are imported here, so that flags are checked before anything slow is loaded.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from absl import flags as absl_flags
from absl.app import UsageError

from commands.shares import shares_of
from ground.addresses import without_password
from ground.bounds import BOUNDS, FINITE
from ground.documents import SURROGATE, read_json
from ground.files import write_atomically
from ground.outputs import note_read
from ground.words import nearest, one_line

Options = TypeVar("Options")

_CONFIG = "config"
_METADATA = "flag"
_SHOWN_CHARACTERS = 200
_LONGEST_LINE = 2000  # of a message, which may repeat what it found, however long
_HUGE = 2**1000  # beyond every bound, and a float
_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class Group(enum.Enum):
    """The headings of `--help` in their order, each with what its flags are about."""

    DATA = "input and output"
    MODEL = "the model, its weights"
    OBJECTIVE = "what is learnt"
    MASKING = "which tokens are hidden"
    EXAMPLES = "sizes and number of the examples"
    TRAINING = "length, batches, learning rate"
    EVALUATION = "what is scored, when"
    OPTIMIZER = "how gradients become updates"
    GENERATION = "how text is generated"
    TECHNIQUES = "fine-tuning on little data"
    SERVING = "who may ask, how much, how fast"
    DEVICES = "where and how it computes"
    SHARDS = "processes, files and clusters"
    WATCHING = "what a run keeps, tells and watches"
    OTHER = "further flags"

    @property
    def word(self) -> str:
        """The name that `--help=GROUP` takes."""
        return self.name.lower()


@dataclasses.dataclass(frozen=True)
class _Declaration:
    help: str
    unit: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    aliases: tuple[str, ...]
    essential: bool
    group: Group | None
    unset: tuple[str, ...] = ()
    mixed: bool = False


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A flag of another program that is taken, and has no place of its own here.

    Attributes:
        says: what is said of it, a clause behind its name and value.
        becomes: its value -> the flags in its place; raises `UsageError` for a value that would mean something else.
    """

    says: str
    becomes: Callable[[str], Sequence[str]] = lambda value: ()


FOREIGN = "foreign"
"""The member of an options dataclass that has the flags of other programs by name: `foreign: ClassVar = {...}`."""


def flag(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002 (absl and argparse name it so)
    unit: str = "",
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    aliases: Sequence[str] = (),
    essential: bool = False,
    group: Group | None = None,
    unset: Sequence[str] = (),
    mixed: bool = False,
) -> Any:
    """Declare one field of an options dataclass; without a default the flag is required.

    Field types: `str int float bool`, each also as `T | None` (an empty value means None) and as `tuple[T, ...]`
    (values separated by commas). `minimum` and `maximum` are inclusive; `aliases` are other names of the same flag.
    What is `essential` is explained by `--help` at once, as required flags are; `group` is for a flag that stands under
    the heading of another group; `unset` are values that mean None, as -1 does in other programs. Of `mixed` choices
    there may be several with their shares (`commands.shares`).
    """
    declaration = _Declaration(
        help, unit, tuple(choices), minimum, maximum, tuple(aliases), essential, group, tuple(unset), mixed
    )
    return dataclasses.field(default=default, metadata={_METADATA: declaration})


@dataclasses.dataclass(frozen=True)
class _Flag:
    """A field of an options dataclass with its type taken apart."""

    name: str
    kind: type
    optional: bool
    many: bool
    default: Any
    declaration: _Declaration

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def checked(self, value: Any) -> Any:
        """Return `value` (a Python or JSON value) in the declared type, or raise the `UsageError` that says why not."""
        if self.many:
            items = [value] if isinstance(value, str) else value
            if not isinstance(items, list | tuple):
                raise self._error(value, f"a list of {_EXPECTED[self.kind]}")
            return self._different(tuple(self._checked_item(item) for item in items))
        if self.optional and (value in (None, "") or str(value) in self.declaration.unset):
            return None
        return self._checked_item(value)

    def parsed(self, text: str) -> Any:
        """Return the value that `text` from the command line means."""
        if self.many:
            items = [item.strip() for item in text.split(",")]
            return self._different(tuple(self._checked_item(self._read(item)) for item in items if item))
        if self.optional and (not text or text in self.declaration.unset):
            return None
        return self._checked_item(self._read(text))

    def _read(self, text: str) -> Any:
        if self.kind is bool and text.lower() in _BOOLEANS:
            return _BOOLEANS[text.lower()]
        if self.kind in (int, float):
            try:
                return self.kind(text)
            except ValueError:  # also a whole number of thousands of digits
                raise self._error(text, _EXPECTED[self.kind]) from None
        return text

    def _different(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return a list of numbers if none comes twice: it would do, and count, the same again."""
        if self.kind in (int, float) and (twice := [value for value in values if values.count(value) > 1]):
            raise self._error(",".join(map(str, values)), f"different numbers, and {twice[0]} is named twice")
        return values

    def _checked_item(self, value: Any) -> Any:
        if self.kind is float and type(value) is int:
            value = float(max(-_HUGE, min(_HUGE, value)))
        if type(value) is not self.kind:
            raise self._error(value, _EXPECTED[self.kind])
        allowed = self.declaration
        if allowed.mixed:
            shares_of(value, allowed.choices, self.name)
        elif allowed.choices and value not in allowed.choices:
            raise self._error(value, "one of " + ", ".join(allowed.choices))
        if self.kind is str and value and (kind := _no_text(value)):
            raise UsageError(f"--{self.name}={value[:_SHOWN_CHARACTERS]!r}: {kind}; expected text, or leave it out")
        if allowed.minimum is not None and not value >= allowed.minimum:
            raise self._error(value, f"at least {allowed.minimum:g}")
        if allowed.maximum is not None and not value <= allowed.maximum:
            raise self._error(value, f"at most {allowed.maximum:g}")
        if self.kind in (int, float):
            bounds = BOUNDS.get(self.name, FINITE)
            if complaint := bounds.complaint(value):
                raise self._error(value, complaint)
        return value

    def _error(self, value: Any, expected: str) -> UsageError:
        text = str(value) if not isinstance(value, int) or abs(value) < 2**200 else "..."
        if len(text) > _SHOWN_CHARACTERS:
            text = text[:_SHOWN_CHARACTERS] + "..."
        return UsageError(f"--{self.name}={text}: expected {expected}")


def _no_text(value: str) -> str:
    """Return why a value is no text, such as a name of a file; empty where it is."""
    if not value.strip():
        return "only white space"
    if SURROGATE.search(value):  # how Python shows bytes of the command line that are no UTF-8
        return "not UTF-8, by which files and manifests name it"
    return "a NUL character" if "\0" in value else ""


_BOOLEANS = {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}


class _Parser(absl_flags.ArgumentParser[Any]):
    """Hands absl's raw texts to a `_Flag`."""

    def __init__(self, spec: _Flag):
        super().__init__()
        self._spec = spec

    def parse(self, argument: Any) -> Any:
        return self._spec.parsed(argument) if isinstance(argument, str) else argument


class _FlagValues(absl_flags.FlagValues):
    """Names no flags to absl, whose search for the nearest one takes minutes, or fails, where a name is long."""

    def __iter__(self) -> Iterator[str]:
        return iter(())


def _flags_of(options_type: type) -> dict[str, _Flag]:
    hints = typing.get_type_hints(options_type)
    specs: dict[str, _Flag] = {}
    for field in dataclasses.fields(options_type):
        hint, optional, many = hints[field.name], False, False
        if isinstance(hint, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
            optional = True
        if typing.get_origin(hint) is tuple:
            hint, many = typing.get_args(hint)[0], True
        specs[field.name] = _Flag(field.name, hint, optional, many, field.default, field.metadata[_METADATA])
    return specs


def _read_config(path: str, specs: Mapping[str, _Flag]) -> dict[str, Any]:
    content = read_json(path, dict[str, Any], what="a JSON file of flags", where=f"--config={path}")
    values = {}
    for name, value in content.items():
        if name not in specs:
            raise UsageError(f"--config={path}: unknown flag {name!r}; the nearest is {nearest(name, specs)!r}")
        try:
            values[name] = specs[name].checked(value)
        except UsageError as error:
            raise UsageError(f"--config={path}: {error}") from None
    return values


def _translated(
    specs: Mapping[str, _Flag], foreign: Mapping[str, Foreign], arguments: Sequence[str], say: Callable[[str], object]
) -> list[str]:
    """Return the arguments as absl takes them: no foreign flags, and `--name True` as `--name=True`.

    Other programs' parsers take a word behind a flag of true or false as its value. What foreign flags become stands
    first, so that flags that are given win.
    """
    switches = {
        name
        for spec in specs.values()
        if spec.kind is bool and not spec.many
        for name in (spec.name, *spec.declaration.aliases)
    }
    left, own, become = list(arguments), list[str](), list[str]()
    while left:
        argument = left.pop(0)
        name, equals, value = argument.lstrip("-").partition("=")
        following = left[0] if left else ""
        if argument.startswith("-") and name in foreign:
            if not equals:
                value = left.pop(0) if following and not following.startswith("-") else "true"
            become += _foreign(foreign[name], name, value, say)
        elif argument.startswith("-") and name in switches and not equals and following.lower() in ("true", "false"):
            own.append(f"{argument}={left.pop(0)}")
        else:
            own.append(argument)
    return [*become, *own]


def _foreign(flag: Foreign, name: str, value: str, say: Callable[[str], object]) -> Sequence[str]:
    become = flag.becomes(value)
    say(f"--{name}={value[:_SHOWN_CHARACTERS]}: {flag.says}")
    return become


def parse(
    options_type: type[Options], arguments: Sequence[str], say: Callable[[str], object] = lambda line: None
) -> Options:
    """Parse command-line `arguments` (without the program name) into an `options_type`.

    Precedence: command line, then the file of `--config`, then the declared defaults. Raises `UsageError` of one line
    for an unknown flag, a wrong value, a stray argument or missing required flags. `say` gets a line for each flag of
    another program.
    """
    specs = _flags_of(options_type)
    arguments = _translated(specs, getattr(options_type, FOREIGN, {}), arguments, say)
    values = _FlagValues()
    for spec in specs.values():
        if spec.kind is bool and not (spec.many or spec.optional):
            defined = absl_flags.BooleanFlag(spec.name, None, spec.declaration.help)
            defined.parser = _Parser(spec)
        else:
            serializer = absl_flags.ArgumentSerializer()
            defined = absl_flags.Flag(_Parser(spec), serializer, spec.name, None, spec.declaration.help)
        values[spec.name] = defined
        for alias in spec.declaration.aliases:
            absl_flags.DEFINE_alias(alias, spec.name, flag_values=values)
    absl_flags.DEFINE_string(_CONFIG, None, "JSON file of flags", flag_values=values)
    values.set_gnu_getopt(True)
    names = [*specs, *(alias for spec in specs.values() for alias in spec.declaration.aliases), _CONFIG]
    try:
        rest = values(["program", *arguments])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        typed = error.flagname[:_SHOWN_CHARACTERS]
        closest = nearest(typed.removeprefix("no"), names)
        raise UsageError(f"unknown flag --{typed}; the nearest is --{closest}") from None
    except absl_flags.Error as error:
        raise UsageError(f"{error}; write flags as --name=value, true and false as --name and --noname") from None
    if rest:
        raise UsageError(
            f"unexpected argument {rest[0]!r}; write flags as --name=value, true and false as --name and --noname, "
            "lists with commas, and put patterns in quotes"
        )
    config: str | None = values[_CONFIG].value
    if config is not None and not config.strip():
        raise UsageError(f"--{_CONFIG}={config}: no path; name a JSON file of flags, or leave the flag out")
    given = {} if config is None else _read_config(config, specs)
    note_read("--config", config)
    given |= {name: values[name].value for name in specs if values[name].present}
    missing = [f"--{spec.name}" for spec in specs.values() if spec.required and given.get(spec.name, "") in ("", ())]
    if missing:
        raise UsageError(f"missing required flag{'s' * (len(missing) > 1)}: {', '.join(missing)}")
    return options_type(**given)


def groups_of(options_type: type) -> dict[Group, list[str]]:
    """Return the flags of each group in the order of `Group`; each flag is in one.

    A flag that a subclass declares anew stays in the group of its first declaration.
    """
    specs = _flags_of(options_type)
    found: dict[str, Group] = {}
    for declaring in reversed(options_type.__mro__):
        heading = Group.OTHER
        for name in vars(declaring).get("__annotations__", ()):
            value = vars(declaring).get(name)
            if isinstance(value, Group):
                heading = value
            elif name in specs:
                found.setdefault(name, heading)
    found |= {name: spec.declaration.group for name, spec in specs.items() if spec.declaration.group}
    return {group: names for group in Group if (names := [name for name in specs if found[name] is group])}


def help_text(options_type: type, program: str, topic: str = "") -> str:
    """Return the text of `--help` or `--help=TOPIC`: a group, a flag, or `all`; raises `UsageError` for another one."""
    specs, groups = _flags_of(options_type), groups_of(options_type)
    title = f"{program}: {(options_type.__doc__ or '').strip().splitlines()[0]}"
    if not topic:
        return "\n".join([*textwrap.wrap(title, _WIDTH), *_overview(specs, groups)])
    chosen = {group: names for group, names in groups.items() if topic in ("all", group.word)}
    if topic in specs and not chosen:
        chosen = {group: [topic] for group, names in groups.items() if topic in names}
    if not chosen:
        words = ["all", *(group.word for group in groups)]
        raise UsageError(
            f"--help={topic}: the nearest is --help={nearest(topic, [*words, *specs])}; groups are {', '.join(words)}"
        )
    lines = [title]
    for group, names in chosen.items():
        lines += ["", f"{group.word}: {group.value}"]
        for name in sorted(names, key=lambda name: _rank(specs[name])):
            lines += _paragraph(specs[name])
    return "\n".join([*lines, *(["", *_CONFIG_HELP, *_foreign_help(options_type)] if topic == "all" else [])])


_WIDTH = 118
_CONFIG_HELP = [
    f"  --{_CONFIG}=FILE",
    "      JSON file of flags, as a run writes it beside its output; flags given here win",
]


def _foreign_help(options_type: type) -> list[str]:
    """Return the lines about the flags of other programs."""
    foreign: Mapping[str, Foreign] = getattr(options_type, FOREIGN, {})
    if not foreign:
        return []
    listed = "; ".join(f"{name} {each.says}" for name, each in foreign.items())
    return [
        "",
        *textwrap.wrap(f"taken from the commands of other programs: {listed}", _WIDTH, subsequent_indent=" " * 6),
    ]


def _rank(spec: _Flag) -> int:
    """Required flags first, then the essential ones."""
    return 0 if spec.required else 1 if spec.declaration.essential else 2


def _overview(specs: Mapping[str, _Flag], groups: Mapping[Group, Sequence[str]]) -> list[str]:
    """Return a line for each required or essential flag, and the names of all others by group."""
    lines = []
    in_order = [specs[name] for names in groups.values() for name in names]
    shown = [[spec for spec in in_order if _rank(spec) == rank] for rank in (0, 1)]
    heads = {spec.name: _head(spec) for part in shown for spec in part}
    column = max(map(len, heads.values()), default=0)
    for title, part in zip(("required", "what most runs need"), shown, strict=True):
        lines += ["", f"{title}:"] if part else []
        lines += [f"  {heads[spec.name]:<{column}}  {_short(spec, _WIDTH - column - 4)}" for spec in part]
    explained = "--help=GROUP or --help=FLAG explains them, --help=all every flag"
    lines += ["", f"all others; {explained}, --{_CONFIG}=FILE reads them from JSON:"]
    width = max(len(group.word) for group in groups)
    for group, names in groups.items():
        rest = " ".join(name for name in names if _rank(specs[name]) == 2)
        indent = " " * (width + 4)
        text = f"{group.value}: {rest}" if rest else group.value
        lines += textwrap.wrap(text, _WIDTH, initial_indent=f"  {group.word:<{width}}  ", subsequent_indent=indent)
    return lines


def _head(spec: _Flag) -> str:
    """Return the flag as it is typed, with its default."""
    return f"--{spec.name}" if spec.required else f"--{spec.name}={_as_text(spec.default)}"


def _short(spec: _Flag, width: int) -> str:
    """Return the help in one line: whole where it fits, else its first clause."""
    told = spec.declaration
    facts = "; ".join(fact for fact in (told.unit, "|".join(told.choices)) if fact)
    clause = told.help.partition(";")[0]
    texts = [*([f"{text} [{facts}]" for text in (told.help, clause)] if facts else [told.help]), clause]
    return next((text for text in texts if len(text) <= width), textwrap.shorten(clause, width, placeholder=" ..."))


def _paragraph(spec: _Flag) -> list[str]:
    """Return all that there is to say about a flag."""
    told = spec.declaration
    default = "required" if spec.required else _as_text(spec.default)
    facts = [told.unit, "|".join(told.choices), *(f"also --{alias}" for alias in told.aliases)]
    extra = "; ".join(fact for fact in facts if fact)
    text = told.help + (f" [{extra}]" if extra else "")
    head = f"  --{spec.name}" + (f" ({default})" if default else "")
    return [head, *textwrap.wrap(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def help_topic(arguments: Sequence[str]) -> str | None:
    """Return the topic of --help in the arguments: "" for `--help` alone, None where it is not asked for."""
    for argument in arguments:
        name, _, topic = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name in ("help", "h", "helpshort", "helpfull"):
            return "all" if name == "helpfull" else topic
    return None


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def resolved(options: Any) -> dict[str, Any]:
    """Return all options by name as a run keeps them: without the passwords of addresses."""
    return {
        name: without_password(value) if isinstance(value, str) else value
        for name, value in dataclasses.asdict(options).items()
    }


def write_config(options: Any, path: str | os.PathLike[str]) -> None:
    """Write the resolved options as JSON that `--config` reads back; raises `OSError`."""
    write_atomically(path, json.dumps(resolved(options), indent=2, ensure_ascii=False) + "\n")


def run(
    main: Callable[[Options], int | None], options_type: type[Options], arguments: Sequence[str] | None = None
) -> NoReturn:
    """Parse flags, call `main` with them and exit with its code (None is 0).

    A `UsageError` is one line on stderr and exit code 2, an `OSError` one line and 1, Ctrl-C one line and 130; anything
    else keeps its traceback. Sets what TensorFlow and Keras read from the environment on import, unless it is set.
    """
    # oneDNN raised ALBERT-base training by 15 % on AMD, where TensorFlow leaves it off.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    program = Path(sys.argv[0]).name
    given = sys.argv[1:] if arguments is None else arguments
    options = None
    try:
        topic = help_topic(given)
        if topic is not None:
            print(help_text(options_type, program, topic))
        code = 0
        if topic is None:
            options = parse(options_type, given, print)
            code = main(options)
        sys.stdout.flush()  # here, where a reader that left is no error
    except UsageError as error:
        _fail(program, str(error), 2)
    except BrokenPipeError:
        # The reader of our output left (`| head`).
        _forget_stdout()
        sys.exit(141)
    except OSError as error:
        what = "disk full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        _fail(program, f"{what}: {_named(error.filename, options)}" if error.filename else what, 1)
    except KeyboardInterrupt:
        _fail(program, "interrupted", 130)
    sys.exit(code or 0)


def _named(path: object, options: Any) -> str:
    """Return a path with the flag that gave it, if one did."""
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    for name, value in ({} if options is None else vars(options)).items():
        if text in (value if isinstance(value, tuple) else (value,)):
            return f"--{name}={text}"
    return text


def _forget_stdout() -> None:
    """Let nothing more be written to an output that takes nothing; Python would fail again flushing at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(program: str, message: str, code: int) -> NoReturn:
    # A file name may hold bytes that are no text, and a damaged checkpoint's names what controls a terminal.
    line = one_line(message)
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"
    print(f"{program}: {line}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _forget_stdout()
    sys.exit(code)
