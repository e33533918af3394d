"""Names, versions and lineage.

:class:`DatasetManager` gives datasets and :class:`ModelRegistry` models by name; every record (run, model, conversion, index) is
DAG-CBOR and links what it was made from, so :func:`verify` can walk from a model down to the rows and the code, and hash all
of it again. :class:`Signatures` tells who stands for it.
"""

from __future__ import annotations

from holdfast.registry.code import bundle_code, load_code
from holdfast.registry.database import Database
from holdfast.registry.dataset_manager import DatasetManager, Shared
from holdfast.registry.models.model_registry import ModelRegistry
from holdfast.registry.models.torch_modules import load_weights, store_weights
from holdfast.registry.names import NameEntry, Names, Reference, SqliteNames
from holdfast.registry.opening import open_database, open_registry
from holdfast.registry.proof import KeyRing, LineageNode, PublicKey, Signatures, Signed, verify
from holdfast.registry.records import (
    AttestationRecord,
    CodeRecord,
    ConversionRecord,
    EnvironmentRecord,
    IndexRecord,
    ModelRecord,
    RunRecord,
    load_record,
)
from holdfast.registry.run_table import RunSpec, RunState, RunStatus, RunTable

__all__ = [
    "AttestationRecord",
    "CodeRecord",
    "ConversionRecord",
    "Database",
    "DatasetManager",
    "EnvironmentRecord",
    "IndexRecord",
    "KeyRing",
    "LineageNode",
    "ModelRecord",
    "ModelRegistry",
    "NameEntry",
    "Names",
    "PublicKey",
    "Reference",
    "RunRecord",
    "RunSpec",
    "RunState",
    "RunStatus",
    "RunTable",
    "Shared",
    "Signatures",
    "Signed",
    "SqliteNames",
    "bundle_code",
    "load_code",
    "load_record",
    "load_weights",
    "open_database",
    "open_registry",
    "store_weights",
    "verify",
]
