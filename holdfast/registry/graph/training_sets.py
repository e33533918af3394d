"""Which models were made from which dataset versions, and so: which models have seen a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput, NotFound, Unavailable
from holdfast.registry.graph.record_links import ANCESTORS, DATASET
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from holdfast.registry.graph.made_from import MadeFrom
    from holdfast.storage.content import ContentStore

__all__ = ["ModelWithRow", "TrainingSet", "models_with_row", "training_sets"]

MODEL = "model"
_ALL = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSet:
    """A dataset version, and the models that were made from it."""

    dataset: Cid
    models: Mapping[Cid, bool]
    """For each model whether it was trained on the dataset itself; False if one was that it was made from."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "dataset": str(self.dataset),
            "models": {str(model): itself for model, itself in self.models.items()},
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TrainingSet:
        """The value that :meth:`to_json` wrote."""
        return cls(
            dataset=Cid.parse(body["dataset"]),
            models={Cid.parse(model): itself for model, itself in body["models"].items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWithRow:
    """A model that was made from a dataset version with a row in it."""

    model: Cid
    dataset: Cid
    itself: bool
    """Whether this model was trained on the dataset; False if one was that it was made from."""


def training_sets(made_from: MadeFrom) -> list[TrainingSet]:
    """Every dataset version that models were made from. One that was only edited into the next is not among them."""
    found = [
        TrainingSet(dataset=dataset, models=_models(made_from, dataset))
        for dataset in made_from.of_kind(DATASET)
    ]
    return [one for one in found if one.models]


def _models(made_from: MadeFrom, dataset: Cid) -> dict[Cid, bool]:
    """The models above a dataset; ways through other datasets are left out: those may have lost any row."""
    models: dict[Cid, bool] = {}
    seen = {dataset}
    pending = [(dataset, True)]
    while pending:
        # First everything that no other model lies before, so that a model trained on it directly is seen as such.
        cid, itself = pending.pop(0)
        above = [
            link.whole
            for link in made_from.wholes(cid, limit=_ALL)
            if link.role.partition(".")[0] not in ANCESTORS or cid != dataset
        ]
        kinds = made_from.kinds(above)
        for whole in above:
            if whole in seen or kinds.get(whole) == DATASET:
                continue
            seen.add(whole)
            if kinds.get(whole) == MODEL:
                models[whole] = itself
                pending.append((whole, False))
            else:
                pending.insert(0, (whole, itself))
    return models


def models_with_row(
    store: ContentStore,
    sets: Iterable[TrainingSet],
    row: Mapping[str, Any],
    *,
    split: str | None = None,
    on_unread: Callable[[Cid, Exception], object] | None = None,
) -> Iterator[ModelWithRow]:
    """Yield the models that were trained on a dataset version that contains a row.

    Each dataset is asked once; statistics rule out most of them without reading rows.

    Args:
        store: Gives the rows.
        sets: Where to look; see :func:`training_sets`.
        row: Values by column, of all columns or those that matter.
        split: Look in this one only, such as ``train``.
        on_unread: Told of each dataset whose rows nobody has, and why; default: that is an error.

    Raises:
        InvalidInput: No dataset has such columns, or such a split, or a value can't be one of its column.
        NotFound: The rows of a dataset are nowhere.
    """
    from holdfast.storage.datasets.dataset import open_dataset

    refused: InvalidInput | None = None
    columns: set[str] = set()
    splits: set[str] = set()
    fitting = 0
    for one in sets:
        try:
            dataset = open_dataset(store, one.dataset)
            columns |= set(dataset.schema.names)
            if not set(row) <= set(dataset.schema.names):
                continue  # another kind of data
            splits |= set(dataset.summaries)
            if split is not None and split not in dataset.summaries:
                continue
            contained = dataset.contains(row, split)
            fitting += 1
        except InvalidInput as error:  # its columns are called the same, and hold something else
            refused = refused or InvalidInput(f"{error}, in the dataset {one.dataset}")
            continue
        except (NotFound, Unavailable) as error:
            if on_unread is None:
                raise
            on_unread(one.dataset, error)
            fitting += 1
            continue
        if contained:
            for model, itself in one.models.items():
                yield ModelWithRow(model=model, dataset=one.dataset, itself=itself)
    if columns and not fitting:
        # Nobody may take a misspelt word for "no model has seen it".
        raise refused or InvalidInput(_why_nowhere(row, split, columns, splits))


def _why_nowhere(row: Mapping[str, Any], split: str | None, columns: set[str], splits: set[str]) -> str:
    """Why no dataset that was asked could have such a row."""
    if splits:
        return (
            f"of the datasets with such columns that models were made from, none has a split {split!r}: "
            f"they have {', '.join(sorted(splits))}"
        )
    unknown = [name for name in row if name not in columns]
    lacking = f"a column {unknown[0]!r}" if unknown else f"all of the columns {', '.join(row)}"
    return (
        f"no dataset that a model was made from has {lacking}: they have {', '.join(sorted(columns))}; "
        "datasets that no model was made from are not looked into"
    )
