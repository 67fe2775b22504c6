"""How text is searched for: one frozen dataclass, its bounds, and the published settings as presets.

Only the standard library and `ground` are imported, so that a verb can show the presets before Keras is loaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl.app import UsageError

from ground.bounds import BOUNDS
from ground.words import did_you_mean

RULES = ("transformers", "fairseq", "gnmt", "palm")


def check_numbers(settings: Settings | Chunks) -> None:
    """Raise `UsageError` for a number of another type or beyond `BOUNDS`; whole numbers become floats where meant."""
    for field in dataclasses.fields(settings):
        if field.name not in BOUNDS:
            continue
        value, kind = getattr(settings, field.name), {"int": int, "float": float}[str(field.type)]
        if kind is float and type(value) is int:
            value = float(value)
            object.__setattr__(settings, field.name, value)
        if type(value) is not kind:
            raise UsageError(f"{field.name} is {value!r}; expected {kind.__name__}")
        if complaint := BOUNDS[field.name].complaint(value):
            raise UsageError(f"{field.name} is {value}; expected {complaint}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Every choice of a search. Lengths count generated tokens with the end token, without the start token.

    Attributes:
        rule: when hypotheses and sources are finished: that of transformers, fairseq, GNMT (t5x) or PALM.
        num_beams: hypotheses that grow side by side; 1 is greedy search, or sampling.
        num_return_sequences: hypotheses returned of a source; at most `num_beams`, but when sampling.
        max_new_tokens: most tokens of a hypothesis.
        min_new_tokens: least tokens before the end token.
        length_penalty: exponent; sums of log-probabilities are divided by n ** length_penalty, and by
            ((5 + n) / 6) ** length_penalty with the rules gnmt and palm.
        early_stopping: of the rule transformers: True stops at `num_beams` hypotheses, False when the best beam falls
            behind at its present length, "never" when it does so even at full length.
        no_repeat_ngram_size: no n-gram of this size comes twice; 0 allows all.
        repetition_penalty: above 1, lowers tokens that the hypothesis already has.
        do_sample: draw tokens instead of taking the best.
        temperature: divides the scores before a draw.
        top_k: draw from the best `top_k` tokens only; 0 from all. Of equal scores the lower id is kept.
        top_p: draw from the fewest tokens whose probabilities sum to `top_p`.
        seed: with the source's tokens, decides every draw; other sources of the batch play no part.
        forced_bos_token_id: the first token, at no cost.
        forced_eos_token_id: the last token where `max_new_tokens` is reached, at no cost.
        suppress_tokens: ids that are never generated.

    Raises:
        UsageError: a value is impossible, or two do not fit together.
    """

    rule: str = "transformers"
    num_beams: int = 1
    num_return_sequences: int = 1
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    suppress_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.rule not in RULES:
            known = ", ".join(RULES)
            raise UsageError(f"rule is {self.rule!r}; expected one of {known}{did_you_mean(str(self.rule), RULES)}")
        if type(self.early_stopping) is not bool and self.early_stopping != "never":
            raise UsageError(f'early_stopping is {self.early_stopping!r}; expected True, False or "never"')
        if type(self.do_sample) is not bool:
            raise UsageError(f"do_sample is {self.do_sample!r}; expected True or False")
        for name, value in (
            ("forced_bos_token_id", self.forced_bos_token_id),
            ("forced_eos_token_id", self.forced_eos_token_id),
            *(("suppress_tokens", token) for token in self.suppress_tokens),
        ):
            if value is not None and (type(value) is not int or value < 0):
                raise UsageError(f"{name} has {value!r}; expected token ids from 0 on")
        self._check_together()

    def _check_together(self) -> None:
        if self.min_new_tokens >= self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens {self.min_new_tokens} leaves no room for the end token below max_new_tokens "
                f"{self.max_new_tokens}: lower the one or raise the other"
            )
        if self.do_sample and self.num_beams > 1:
            raise UsageError(f"do_sample draws single rows, num_beams is {self.num_beams}: leave one of both out")
        if not self.do_sample and self.num_return_sequences > self.num_beams:
            raise UsageError(
                f"num_return_sequences {self.num_return_sequences} is above num_beams {self.num_beams}: a search has "
                "as many hypotheses as beams; widen the beam or set do_sample"
            )
        if not self.do_sample:
            for name in ("temperature", "top_k", "top_p"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise UsageError(f"{name} is {getattr(self, name)}, which does nothing without do_sample: set both")

    @property
    def rows(self) -> int:
        """K, the rows that a source has in a batch."""
        return self.num_return_sequences if self.do_sample else self.num_beams

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings with these names and values.

        Raises:
            UsageError: an unknown name (the nearest is shown), or an impossible value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(
                    f"unknown setting {name!r} of generation{did_you_mean(name, known)}: expected some of "
                    f"{', '.join(known)}"
                )
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})

    def changed(self, **values: Any) -> Settings:
        """Return these settings with some replaced, under the same checks."""
        return self.from_mapping({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **values})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunks:
    """Long text in parts, as PLUG writes it: what was written joins the source, and the source is encoded anew.

    Attributes:
        chunk_tokens: tokens between two encodings.
        min_fraction: share of `max_new_tokens` before which the end token is not allowed.
    """

    chunk_tokens: int = 128
    min_fraction: float = 0.8

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclasses.dataclass(frozen=True)
class Preset:
    """Published settings: whose they are, and how long text is written."""

    of: str
    settings: Settings
    chunks: Chunks | None = None

    def describe(self) -> str:
        """Return the settings for the preamble of a run."""
        settings = self.settings
        how = f"{settings.rows} drawn" if settings.do_sample else f"beam {settings.num_beams}"
        chunks = f", in chunks of {self.chunks.chunk_tokens}" if self.chunks else ""
        return f"{how}, {settings.min_new_tokens} to {settings.max_new_tokens} tokens{chunks}, rule {settings.rule}"


SETTINGS = (
    "preset",
    "num_beams",
    "num_return_sequences",
    "min_new_tokens",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "finishing_rule",
    "seed",
)
"""The options of a verb that decide how text is searched for, beside the longest target."""


def chosen_preset(options: Mapping[str, Any]) -> Preset:
    """Return the preset that options of these names, and `max_target_length`, choose; None leaves the preset's value.

    Raises:
        UsageError: they do not go together.
    """
    name = options.get("preset") or "palm"
    preset = PRESETS[name]
    changes = {
        name: options[name] for name in SETTINGS[1:-2] if name != "early_stopping" and options.get(name) is not None
    }
    if options.get("finishing_rule") is not None:
        changes["rule"] = options["finishing_rule"]
    if (stopping := options.get("early_stopping")) is not None:
        changes["early_stopping"] = {"true": True, "false": False}.get(stopping, "never")
    most = min(preset.settings.max_new_tokens, options["max_target_length"])
    try:
        settings = preset.settings.changed(**changes, seed=options.get("seed") or 0, max_new_tokens=most)
    except UsageError as error:
        raise UsageError(f"--preset={name} with these flags: {error}") from None
    return Preset(preset.of, settings, preset.chunks)


PRESETS: dict[str, Preset] = {
    "greedy": Preset("the best token at every step", Settings()),
    "palm": Preset("new PALM runs", Settings(num_beams=5, early_stopping=True, max_new_tokens=100)),
    "palm_cnndm": Preset(
        "AliceMind's English PALM on CNN/Daily Mail",
        Settings(rule="palm", num_beams=5, length_penalty=0.95, min_new_tokens=40, max_new_tokens=130),
    ),
    "palm_chinese": Preset(
        "sofa's Chinese PALM, fine-tuned",
        Settings(rule="palm", num_beams=5, length_penalty=0.6, max_new_tokens=100),
    ),
    "plug_fine_tuned": Preset(
        "sofa's PLUG, fine-tuned",
        Settings(rule="palm", num_beams=5, length_penalty=0.6, min_new_tokens=5, max_new_tokens=30),
    ),
    "plug": Preset(
        "PLUG's long generation",
        Settings(do_sample=True, temperature=0.9, top_k=20, max_new_tokens=512),
        Chunks(),
    ),
    "veco_nmt": Preset(
        "VECO's translation with fairseq",
        Settings(rule="fairseq", num_beams=5, min_new_tokens=1, max_new_tokens=201),
    ),
}
