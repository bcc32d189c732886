"""Aggregators: instances of a bag → one embedding. One paper per file; importing the package registers them all."""

from mil.aggregators import abmil as abmil
from mil.aggregators import bimamba2 as bimamba2
from mil.aggregators import clam as clam
from mil.aggregators import dsmil as dsmil
from mil.aggregators import dtfd as dtfd
from mil.aggregators import multihead_abmil as multihead_abmil
from mil.aggregators import perceiver as perceiver
from mil.aggregators import static as static
from mil.aggregators import transmil as transmil
from mil.aggregators import vit_alibi as vit_alibi
from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.registry import aggregator_names, build_aggregator, register_aggregator

__all__ = ["Aggregated", "Aggregator", "aggregator_names", "build_aggregator", "register_aggregator"]
