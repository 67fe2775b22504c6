"""What an export has besides weights where transformers has no class: our own code, and its entries in the JSON.

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteCode:
    """Files of `conversion/remote_code`, and the classes in them.

    Args:
        configuration: file of the configuration, without `.py`.
        modeling: file of the models, without `.py`.
        prefix: what the names of the classes begin with.
        classes: transformers' Auto class -> the rest of the name of ours.
    """

    configuration: str
    modeling: str
    prefix: str
    classes: Mapping[str, str]

    def contents(self) -> dict[str, bytes]:
        """Return the files by name."""
        return {f"{name}.py": (_FOLDER / f"{name}.py").read_bytes() for name in (self.configuration, self.modeling)}

    def description(self, tensors: Tensors, *, generates: bool) -> dict[str, Any]:
        """Return what config.json says of the code and of the heads that the tensors have."""
        auto = {"AutoConfig": f"{self.configuration}.{self.prefix}Config"}
        auto |= {name: f"{self.modeling}.{self.prefix}{rest}" for name, rest in self.classes.items()}
        values: dict[str, Any] = {"auto_map": auto}
        pair = tensors.get("sentence_pair/kernel")
        if generates:
            values |= {"masked_lm": "masked_lm/output_bias" in tensors, "num_pair_labels": 0}
        return values | ({} if pair is None else {"num_pair_labels": pair.shape[-1]})
