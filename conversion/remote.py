"""What an export has besides weights where transformers has no class: our own code, its entries in the JSON, token ids.

transformers opens such a folder with trust_remote_code=True, by the `auto_map` of its config.json.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conversion.lazy import Tensors
from modeling.config import Config

CONFIG_KEYS = tuple(field.name for field in dataclasses.fields(Config))
"""All of a model's shape stands in the JSON, so that the folder is read back as the same model."""
_FOLDER = Path(__file__).parent / "remote_code"
_SPECIALS = (("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[PAD]", "<pad>"))
_OF_BERT, _OF_ROBERTA = (101, 102, 0), (0, 2, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteCode:
    """Files of `conversion/remote_code`, and the classes in them.

    Args:
        configuration: file of the configuration, without `.py`.
        modeling: file of the models, without `.py`.
        prefix: what the names of the classes begin with.
        classes: transformers' Auto class -> the rest of the name of ours.
        generates: whether the models write text.
    """

    configuration: str
    modeling: str
    prefix: str
    classes: Mapping[str, str]
    generates: bool = False

    def contents(self) -> dict[str, bytes]:
        """Return the files by name."""
        return {f"{name}.py": (_FOLDER / f"{name}.py").read_bytes() for name in (self.configuration, self.modeling)}

    def description(self, tensors: Tensors) -> dict[str, Any]:
        """Return what config.json says of the code and of the heads that the tensors have."""
        auto = {"AutoConfig": f"{self.configuration}.{self.prefix}Config"}
        auto |= {name: f"{self.modeling}.{self.prefix}{rest}" for name, rest in self.classes.items()}
        values: dict[str, Any] = {"auto_map": auto}
        pair = tensors.get("sentence_pair/kernel")
        if self.generates:
            # Without a class of its own, a head of the encoder is a part of the model that generates.
            values["architectures"] = [f"{self.prefix}ForConditionalGeneration"]
            if "classifier/kernel" in tensors:
                values["architectures"] = [f"{self.prefix}ForSequenceClassification"]
            values |= {"masked_lm": "masked_lm/output_bias" in tensors, "num_pair_labels": 0}
        return values | ({} if pair is None else {"num_pair_labels": pair.shape[-1]})

    def token_ids(self, config: Config, tokenizer: bytes | None) -> dict[str, int]:
        """Return the ids that a text begins with, ends with and is padded with, for the JSON; empty where not known.

        Args:
            config: of the model.
            tokenizer: the content of tokenizer.json. Without it the ids are those of BERT's vocabularies or, where
                positions begin behind a padding id, of RoBERTa's.
        """
        if not self.generates:
            return {}
        if tokenizer is None:
            ids: tuple[int | None, ...] = _OF_ROBERTA if config.position_offset else _OF_BERT
        else:
            from tokenizers import Tokenizer

            id_of = Tokenizer.from_str(tokenizer.decode()).token_to_id
            ids = tuple(next((id_of(name) for name in names if id_of(name) is not None), None) for names in _SPECIALS)
        start, end, padding = (i if i is not None and i < config.vocab_size else None for i in ids)
        if start is None or end is None or padding is None:
            return {}
        return {
            "decoder_start_token_id": start,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": padding,
        }
