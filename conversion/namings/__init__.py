"""Every naming that can be read and written, a file for each family's; a new family adds a file and two entries here.

The first naming whose `detect` matches is a checkpoint's, so narrower ones come first.
"""

from collections.abc import Iterable

from conversion.graphs import Graph, has_stock_block
from conversion.namings import albert, albert_zh, bart, bert, divan, ernie_m, palm, roberta, veco
from conversion.namings.tokens import tagger_of
from conversion.rules import Naming
from modeling.config import Config

_ANY_HEAD = (*veco.NAMINGS[-1:], *albert.NAMINGS, *roberta.NAMINGS[-1:], *bert.NAMINGS)
_STOCK = tuple(naming for naming in _ANY_HEAD if naming.container == "transformers")
NAMINGS: tuple[Naming, ...] = (
    *map(tagger_of, _STOCK),
    *divan.NAMINGS,
    *bart.NAMINGS,
    *veco.NAMINGS,
    *palm.NAMINGS,
    *ernie_m.NAMINGS,
    *albert_zh.NAMINGS,
    *albert.NAMINGS,
    *roberta.NAMINGS,
    *bert.NAMINGS,
)
GRAPHS: tuple[Graph, ...] = (
    veco.GRAPH,
    veco.GENERATING_GRAPH,
    palm.ENGLISH_GRAPH,
    palm.GRAPH,
    albert.GRAPH,
    albert_zh.GRAPH,
    ernie_m.GRAPH,
    bert.GRAPH,
)


def naming_of(names: Iterable[str]) -> Naming | None:
    """Return the naming of a checkpoint's raw names; None for names of no known code."""
    names = list(names)
    return next((naming for naming in NAMINGS if naming.names(names)), None)


def graph_of(names: Iterable[str]) -> Graph:
    """Return the graph that our names belong to: the first whose marking variable is among them.

    Post-LN and pre-LN of albert_zh have the same names and shapes: only the config tells them apart.
    """
    names = set(names)
    return next(graph for graph in GRAPHS if not graph.mark or graph.mark in names)


def graph_of_config(config: Config) -> Graph:
    """Return the graph of a config's variables."""
    return next(graph for graph in GRAPHS if graph.describes(config))


def transformers_model_type(config: Config) -> str:
    """Return transformers' model_type that keeps what the model shares, or that of our own code where it has none."""
    own = next(graph for graph in GRAPHS if graph.family == config.family).transformers(config)
    stock = any(naming.model_type == own and naming.code is None for naming in NAMINGS)
    known = config.family in divan.FAMILIES
    return divan.MODEL_TYPE if stock and known and not has_stock_block(config) else own
