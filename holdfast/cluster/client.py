"""The client: everything a person does with holdfast, embedded or against a cluster, in the same words."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from holdfast.cluster.archives import RegistryArchives
from holdfast.cluster.backend import Backend, EmbeddedBackend, MasterBackend
from holdfast.config import load_settings, read_token, token_for
from holdfast.errors import Corrupt, Denied
from holdfast.registry.code import bundle_code
from holdfast.registry.compute.results import computed
from holdfast.registry.compute.training import training_computation
from holdfast.registry.dataset_manager import DatasetManager
from holdfast.registry.graph.lineage_graph import MAX_DEPTH, MAX_NODES
from holdfast.registry.graph.training_sets import models_with_row
from holdfast.registry.measurements import AIMLMetricsCollector
from holdfast.registry.measurements.run_measurements import MEASUREMENTS, measured_run
from holdfast.registry.models.model_registry import ModelRegistry
from holdfast.registry.opening import open_signatures
from holdfast.registry.proof import USER_KEY, LineageNode, verify
from holdfast.registry.records import ConversionRecord, RunRecord, load_record
from holdfast.registry.run_table import CACHED_FROM, RunSpec
from holdfast.storage.cid import Cid
from holdfast.storage.opening import open_store, read_cluster, write_peers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from holdfast.cluster.serving import RunningServer
    from holdfast.inference.search import CorpusIndex
    from holdfast.registry.compute.explaining import Explanation
    from holdfast.registry.graph.lineage_graph import LineageGraph
    from holdfast.registry.graph.training_sets import ModelWithRow
    from holdfast.registry.run_table import RunStatus
    from holdfast.storage.content import ContentStore
    from holdfast.training.context import TrainFunction

__all__ = ["Client", "Run", "connect"]


def connect(
    address: str | None = None, *, home: str | Path | None = None, token: str | None = None
) -> Client:
    """A client: of a cluster, or embedded in this process.

    Args:
        address: The master's URL, as ``holdfast up`` prints it; None opens the embedded form, which needs no daemon
            and no port.
        home: This client's own folder, where blocks are kept; default ``$HOLDFAST_HOME``, or ``~/.holdfast``.
        token: The cluster's token; default: the one in ``<home>/token``.

    Raises:
        Unavailable: Nothing answers at the address.
        Denied: The token is not the cluster's.
        NotFound: No token was given, and there is none in the home.

    Example:
        >>> import holdfast
        >>> with holdfast.connect(home=getfixture("tmp_path")) as client:
        ...     cid = client.store.add_bytes(b"hello")
        ...     print(cid)
        bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq
    """
    settings = load_settings(home)
    if address is None:
        store = open_store(settings)
        return Client(settings.home, store, EmbeddedBackend(settings, store))
    # The home keeps the token, because every process that opens it fetches from the cluster's nodes.
    secret = read_token(settings.home / "token") if token is None else token_for(settings.home, token)
    store = open_store(settings)
    try:
        backend = MasterBackend(address, secret, store)
        nodes = backend.status()["nodes"]
    except BaseException:
        store.close()
        raise
    alive = [node["url"] for node in nodes if node["alive"]]
    # A daemon that runs on this home notes more than we know: who it is itself, which announcements need.
    if read_cluster(settings.home).node_url not in alive:
        write_peers(settings.home, alive, master=backend.url)
    return Client(settings.home, store, backend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished training run."""

    id: str
    cid: Cid
    """Of the run record."""
    model: Cid
    """Of the model's manifest."""
    record: RunRecord
    seconds: float
    """From its start to its end, as the clock said; not part of the record."""
    cached_from: str | None = None
    """The id of the run that made this result before; None if it was computed now."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The numbers of the last report."""
        return self.record.metrics


class Client:
    """Data, training, models, serving and search; made by :func:`connect`.

    Attributes:
        store: Bytes, files, directories and records by CID.
        datasets: The :class:`~holdfast.registry.DatasetManager`.
        models: The :class:`~holdfast.registry.ModelRegistry`.
        names: Versions, aliases and tags of all kinds, and their history: :class:`~holdfast.registry.Names`.
        registry: The whole registry, or some names of it, in and out: :class:`~holdfast.cluster.archives.RegistryArchives`.
        cache: What was computed before: its ``entries()``, ``explain()`` and ``clear()``.
        signatures: Who signed what, and the home's keys and policy: :class:`~holdfast.registry.Signatures`.
    """

    def __init__(self, home: Path, store: ContentStore, backend: Backend) -> None:
        self.home = home
        self.store = store
        self.backend = backend
        self.names = backend.names
        self.datasets = DatasetManager(store, backend.names, publish=backend.publish, home=home)
        self.signatures = open_signatures(load_settings(home), store, backend.attestations)
        self.models = ModelRegistry(store, backend.names, publish=backend.publish, signatures=self.signatures)
        self.registry = RegistryArchives(store, backend)
        self.cache = backend.cache

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store and the registry."""
        self.backend.close()
        self.store.close()

    def train(
        self,
        function: TrainFunction,
        dataset: str | Cid,
        *,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        workers: int = 1,
        threads_per_worker: int = 1,
        use_cache: bool = True,
        on_event: Callable[[dict[str, Any]], object] = lambda _: None,
    ) -> Run:
        """Train, and wait for the end; the run and the model are recorded, not named.

        Args:
            function: At the top level of a module; its source file becomes the run's code. It takes a
                :class:`~holdfast.training.TrainContext` and returns the trained torch module.
            dataset: A CID or a name.
            config: Plain values for the function; part of the run record.
            seed: Of torch, of the order of the data, and of everything else that is random.
            workers: How many; more than one needs a cluster.
            threads_per_worker: CPUs that each gets.
            use_cache: Where the same training was done before, give its result at once; ``cached_from`` then tells by which
                run. False trains in any case.
            on_event: Called with each event: reports of the function, workers that start and end.

        Raises:
            InvalidInput: The function's source is not in a file, it failed on a cluster, or several workers without a cluster.
            Unavailable: The cluster is too small, or lost what was running there.
        """
        spec = self._spec(
            function,
            dataset,
            config=config,
            seed=seed,
            workers=workers,
            threads_per_worker=threads_per_worker,
        )
        status = self.backend.run(spec, on_event, use_cache=use_cache)
        cid = Cid.parse(status.result["run"])
        return Run(
            id=status.id,
            cid=cid,
            model=Cid.parse(status.result["model"]),
            record=load_record(self.store, cid, RunRecord),
            seconds=(status.finished or 0.0) - (status.started or 0.0),
            cached_from=status.result.get(CACHED_FROM),
        )

    def measurements(self, run: str | Run) -> AIMLMetricsCollector:
        """What a run has reported, also while it goes on; :func:`~holdfast.registry.create_visualization` draws it.

        Of a run that is done, they are the file that was stored beside its record; of one that was answered by the cache, those of the
        run that did the work.

        Args:
            run: Its id, or what :meth:`train` gave.

        Raises:
            NotFound: There is no such run.
        """
        name = run if isinstance(run, str) else run.id
        status, events = self.backend.events(name)
        if CACHED_FROM in status.result:
            return self.measurements(status.result[CACHED_FROM])
        stored = status.result.get(MEASUREMENTS)
        if stored is None:
            return measured_run(events, run=name)
        return AIMLMetricsCollector.load(self.store, Cid.parse(stored))

    def runs(self) -> list[RunStatus]:
        """All runs, newest first."""
        return self.backend.runs()

    def convert(
        self, model: str | Cid, *, split: str = "test", trust_code: bool = False, use_cache: bool = True
    ) -> tuple[Cid, ConversionRecord]:
        """The model's ONNX form, compared with the original on real rows; its CID and its record.

        Args:
            model: A CID or a name.
            split: Which rows to compare on.
            trust_code: Run the model's recorded source where it is not installed here.
            use_cache: Give the one that was made in the same environment before. False makes it in any case.

        Raises:
            Corrupt: Its answers differ too much.
            Denied: Nobody who must have signed the model did (``registry.require_signed_by``).
        """
        from holdfast.inference.conversion import conversion_computation, convert_model, remember_conversion

        cid = self.names.cid_of("model", model)
        self.models.check_signed(cid)

        def convert() -> Cid:
            made, _ = convert_model(self.store, self.names, cid, split=split, trust_code=trust_code)
            self.backend.publish(made)
            return made

        computation = conversion_computation(cid, split=split)
        conversion, _ = computed(self.cache, computation, convert, use_cache=use_cache)
        record = load_record(self.store, conversion, ConversionRecord)
        if record.model != cid:
            raise Corrupt(
                f"the cache has {conversion} as the ONNX form of {cid}, but it is one of {record.model}: convert it without the cache"
            )
        remember_conversion(self.names, cid, conversion)
        return conversion, record

    def serve(
        self,
        model: str | Cid,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        threads: int = 1,
        require_signed_by: Sequence[str] | None = None,
    ) -> RunningServer:
        """Serve a model over HTTP (Open Inference Protocol v2) from this process, until it is closed.

        Args:
            model: A CID or a name; it is converted to ONNX if it has not been.
            host: Address to listen on.
            port: 0 takes a free one.
            token: Bearer token that requests must carry; None asks for none.
            threads: ONNX Runtime's, for each request.
            require_signed_by: Names or keys, one of which must have signed the model, besides what the home requires
                (``registry.require_signed_by``). An ONNX form that none of them signed is not believed then, but made here again.

        Raises:
            Denied: Nobody who must have signed the model did.
            Unavailable: The port is in use.
        """
        from holdfast.cluster.serving import RunningServer
        from holdfast.inference import InferenceServer, ServedModel
        from holdfast.inference.conversion import open_engine

        cid, entry = self.names.meant("model", model)
        self.models.check_signed(cid, require_signed_by)
        conversion, record = self._conversion_to_serve(cid, require_signed_by)
        served = ServedModel(
            open_engine(self.store, record, threads=threads),
            version=entry.version if entry else "1",
            cid=str(cid),
            metadata={"conversion": str(conversion), "metrics": dict(self.models.record(str(cid)).metrics)},
        )
        name = entry.name if entry else "model"
        return RunningServer(InferenceServer({name: served}, token=token), name, host, port)

    def _conversion_to_serve(
        self, model: Cid, require_signed_by: Sequence[str] | None
    ) -> tuple[Cid, ConversionRecord]:
        """The ONNX form of a model that may be served: where signatures are required, a stranger's is none."""
        from holdfast.inference.conversion import convert_model, known_conversion

        known = known_conversion(self.store, self.names, model)
        if known is None and not (self.signatures.required or require_signed_by):
            return self.convert(model)
        if known is not None:
            with suppress(Denied):
                self.signatures.require(known[0], require_signed_by)
                return known
        return convert_model(self.store, self.names, model)  # the cache, too, may tell a stranger's

    def build_index(
        self,
        name: str | None,
        *,
        corpus: str | Cid,
        model: str | Cid,
        version: str | None = None,
        output: str = "embedding",
        metric: str = "cosine",
        factory: str = "Flat",
        use_cache: bool = True,
    ) -> CorpusIndex:
        """Embed a dataset with a model and index the vectors; name the index if a name is given.

        Args:
            name: Of the index.
            corpus: A dataset's CID or name.
            model: A model's CID or name.
            version: Like ``1.0.0``; default: the next minor one.
            output: The output of the model that is the vector.
            metric: ``cosine``, ``ip`` or ``l2``.
            factory: FAISS' description of the index; ``Flat`` is exact.
            use_cache: Where the same was built before, give that. False builds it in any case.
        """
        from holdfast.inference.search import CorpusIndex, build_index, index_computation

        conversion, record = self.convert(model, use_cache=use_cache)
        what: dict[str, Any] = {
            "corpus": self.names.cid_of("dataset", corpus),
            "model": record.model,
            "conversion": conversion,
            "output": output,
            "metric": metric,
            "factory": factory,
        }

        def build() -> Cid:
            made = build_index(self.store, **what)
            self.backend.publish(made)
            return made

        cid, _ = computed(self.cache, index_computation(**what), build, use_cache=use_cache)
        self.backend.publish(cid, pin=name is None)
        if name is not None:
            self.names.register("index", name, version, cid)
        return CorpusIndex(self.store, cid)

    def open_index(self, ref: str | Cid) -> CorpusIndex:
        """The index of a CID or a name, ready to search."""
        from holdfast.inference.search import CorpusIndex

        return CorpusIndex(self.store, self.names.cid_of("index", ref))

    def sign(self, ref: str | Cid, *, key: str = USER_KEY, claims: Mapping[str, Any] | None = None) -> Cid:
        """Vouch for a model (or any CID) and for everything that it links; gives the attestation's CID.

        Args:
            ref: A CID, or a name: what it means now is signed.
            key: The name of one of this home's keys; ``user`` is made at first use.
            claims: What to say with it, as plain JSON values.

        Raises:
            NotFound: There is no such key, or no such name.
        """
        return self.signatures.sign(self.resolve(ref), key=key, claims=claims)

    def verify(
        self,
        ref: str | Cid,
        *,
        deep: bool = False,
        require_signed_by: Sequence[str] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> LineageNode:
        """What a model (or any CID) is made of, checked again; look at ``ok``, ``broken()`` and ``render()``.

        Args:
            ref: A CID or a name.
            deep: Hash every byte below, and not only the records and the first block of each file.
            require_signed_by: Names or keys, one of which must have signed it, besides what the home requires.
            progress: Told how many more bytes were hashed, and of how many.
        """
        return verify(
            self.store,
            self.resolve(ref),
            deep=deep,
            signatures=self.signatures,
            require_signed_by=require_signed_by,
            progress=progress,
        )

    def lineage(
        self,
        ref: str | Cid,
        *,
        upstream: bool = True,
        downstream: bool = True,
        max_depth: int = MAX_DEPTH,
        max_nodes: int = MAX_NODES,
    ) -> LineageGraph:
        """What a thing is made of, and what was made from it: ``render()``, ``to_svg()``, ``to_png()`` and ``to_json()``.

        Only records are read, and nothing is hashed again: :meth:`verify` does that.

        Args:
            ref: A CID, or a model, index or dataset by name.
            upstream: What it is made of.
            downstream: What was made from it, as far as it was named or came out of a run.
            max_depth: So many steps from it at most.
            max_nodes: So many things at most; ``cut`` says when there is more.
        """
        cid, entry = self.names.meant(None, ref)
        graph = self.backend.lineage(
            cid,
            upstream=upstream,
            downstream=downstream,
            max_depth=max_depth,
            max_nodes=max_nodes,
        )
        return graph if entry is None else graph.called(f"{entry.name}:{entry.version}")

    def models_with_row(
        self,
        row: Mapping[str, Any],
        *,
        split: str | None = None,
        on_unread: Callable[[Cid, Exception], object] | None = None,
    ) -> list[ModelWithRow]:
        """Every model that was made from a dataset version that contains a row.

        Args:
            row: Values by column, of all columns or those that matter.
            split: Look in this one only, such as ``train``.
            on_unread: Told of each dataset whose rows nobody has, and why; default: that is an error.

        Raises:
            InvalidInput: No dataset has such columns, or a value can't be one of its column.
            NotFound: The rows of a dataset are nowhere.
        """
        sets = self.backend.training_sets()
        return list(models_with_row(self.store, sets, row, split=split, on_unread=on_unread))

    def explain_training(
        self,
        function: TrainFunction,
        dataset: str | Cid,
        *,
        config: Mapping[str, Any] | None = None,
        seed: int = 0,
        workers: int = 1,
        threads_per_worker: int = 1,
    ) -> Explanation:
        """Whether :meth:`train` would be answered by the cache, and if not, what differs from what was done before.

        The environment is this process'; a master's may differ from it.

        Args:
            function: As of :meth:`train`; so are the others.
            dataset: A CID or a name.
            config: Plain values for the function.
            seed: Of everything that is random.
            workers: How many.
            threads_per_worker: CPUs that each gets.
        """
        spec = self._spec(
            function,
            dataset,
            config=config,
            seed=seed,
            workers=workers,
            threads_per_worker=threads_per_worker,
        )
        return self.cache.explain(training_computation(self.store, spec))

    def _spec(
        self,
        function: TrainFunction,
        dataset: str | Cid,
        *,
        config: Mapping[str, Any] | None,
        seed: int,
        workers: int,
        threads_per_worker: int,
    ) -> RunSpec:
        return RunSpec(
            code=bundle_code(self.store, function),
            data=self.names.cid_of("dataset", dataset),
            config=dict(config or {}),
            seed=seed,
            workers=workers,
            threads_per_worker=threads_per_worker,
        )

    def resolve(self, ref: str | Cid) -> Cid:
        """The CID that a reference means: a CID itself, or a model, else an index, else a dataset by name.

        ``dataset/wine`` is the dataset, also where a model has the same name.
        """
        return self.names.cid_of(None, ref)

    def status(self) -> dict[str, Any]:
        """Nodes, names and runs, as plain values."""
        return self.backend.status()
