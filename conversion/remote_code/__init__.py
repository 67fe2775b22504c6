"""Code that an export carries, for models that transformers has no class for; the files are copied verbatim.

Each model is a configuration and a modeling file, which import torch, transformers and one another.
"""
