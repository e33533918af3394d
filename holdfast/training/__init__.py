"""Training functions, run by CID.

A training function takes a :class:`TrainContext` and returns the trained torch module. ``client.train(function, data)`` runs it: embedded in
this process, or on a cluster with one Ray Train worker a rank.
"""

from __future__ import annotations

from holdfast.training.context import TrainContext, TrainFunction

__all__ = ["TrainContext", "TrainFunction"]
