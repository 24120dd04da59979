"""A compile cache that travels: which machine it fits, what it compiles, and its way to the shelf and back into inductor."""

from hotshelf.compiling.carrying import Kept, Outcome, fetch, keep
from hotshelf.compiling.environment import describe, environment_key, key_of
from hotshelf.compiling.gathering import Gathered, gather
from hotshelf.compiling.graph import graph_key
from hotshelf.compiling.inductor import Reuse, counters, places
from hotshelf.compiling.merging import merge

__all__ = [
    "Gathered",
    "Kept",
    "Outcome",
    "Reuse",
    "counters",
    "describe",
    "environment_key",
    "fetch",
    "gather",
    "graph_key",
    "keep",
    "key_of",
    "merge",
    "places",
]
