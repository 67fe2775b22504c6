"""transformers' Auto classes open exports of ours by model_type: without trust_remote_code, or code of the folder."""

from __future__ import annotations

import importlib


def register_transformers() -> list[str]:
    """Make the types of our exports known to transformers in this process, and return them; twice is once.

    Importing this project never does it. Needs PyTorch and transformers.
    """
    from conversion.namings import NAMINGS

    transformers = importlib.import_module("transformers")
    found = []
    for code in {naming.code.configuration: naming.code for naming in NAMINGS if naming.code is not None}.values():
        configuration, modeling = (
            importlib.import_module(f"conversion.remote_code.{name}") for name in (code.configuration, code.modeling)
        )
        config = getattr(configuration, f"{code.prefix}Config")
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto, rest in code.classes.items():
            getattr(transformers, auto).register(config, getattr(modeling, f"{code.prefix}{rest}"), exist_ok=True)
        found.append(config.model_type)
    return found
