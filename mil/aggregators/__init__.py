"""Aggregators: instances of a bag → one embedding. One paper per file; importing the package registers them all."""

from mil.aggregators import abmil, multihead_abmil, static, transmil
from mil.aggregators.base import Aggregated, Aggregator
from mil.aggregators.registry import aggregator_names, build_aggregator, register_aggregator

__all__ = [
    "Aggregated",
    "Aggregator",
    "abmil",
    "aggregator_names",
    "build_aggregator",
    "multihead_abmil",
    "register_aggregator",
    "static",
    "transmil",
]
