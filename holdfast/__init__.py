"""holdfast: an ML cluster in which every dataset, run, model and index is a CID.

A CID names bytes by their hash. Whatever holdfast stores - rows, code, weights, environments, the record of a run - has one, links
what it was made from, and is hashed again whenever it is read. So any model can be asked what exactly it is, and the
answer can be checked by anybody, on any machine, from peers that nobody has to trust.

Everything starts with :func:`connect`::

    import holdfast
    from holdfast.training.examples import digits

    with holdfast.connect() as client:                         # embedded: no daemon, no port
        data = client.datasets.store_dataset(digits.load_digits(), name="digits")
        run = client.train(digits.train, data.cid)             # code by CID, data by CID
        client.models.register("digits", run.model, "1.0.0", aliases=["champion"])
        print(client.verify("digits@champion").render())       # model -> run -> code, data, environment

With an address, the very same client works on a cluster that ``holdfast up`` and ``holdfast worker`` have started::

    client = holdfast.connect("http://127.0.0.1:7400", token=...)

What it offers:

=========================== ==========================================================================
``client.store``            bytes, files, directories and records by CID, as IPFS has them
``client.datasets``         tables as Parquet shards; the same rows have the same CID everywhere
``client.train``            a plain PyTorch function, here or on Ray Train workers
``client.models``           names, versions, aliases; ``get("digits@champion")`` gives the torch module
``client.convert``          the ONNX form, compared with the original on real rows
``client.serve``            HTTP, Open Inference Protocol v2
``client.build_index``      FAISS over embeddings; links corpus and model
``client.verify``           walks and hashes everything below a CID
=========================== ==========================================================================

The rooms behind the door, from the ground up: :mod:`holdfast.storage` (bytes by CID), :mod:`holdfast.registry` (names and lineage),
:mod:`holdfast.training` and :mod:`holdfast.inference` (which do not know each other), :mod:`holdfast.cluster` (processes, API, command
line, dashboard). All errors are :class:`holdfast.errors.HoldfastError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from holdfast.cluster.client import Client, connect
    from holdfast.storage.cid import Cid

__all__ = ["Cid", "Client", "__version__", "connect"]


def __getattr__(name: str) -> Any:
    # At first use: importing holdfast alone must stay quick.
    if name in ("Client", "connect"):
        from holdfast.cluster import client

        return getattr(client, name)
    if name == "Cid":
        from holdfast.storage.cid import Cid

        return Cid
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
