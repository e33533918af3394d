"""Anything at all, as a pickle: kept only when it is asked for, and opened only for a trusted signer's."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, Denied, InvalidInput
from holdfast.registry.models.model_format import SavedModel

if TYPE_CHECKING:
    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["PickledModels"]

_FILE = "model.pkl"
_PROTOCOL = 5


class PickledModels:
    """Any Python object; ``store_model(..., framework="pickle")``."""

    framework: ClassVar[str] = "pickle"
    name: ClassVar[str] = "pickle"

    def accepts(self, model: Any) -> bool:
        """Whether it is anything."""
        return model is not None

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """The pickle of an object."""
        del store
        try:
            return SavedModel(files={_FILE: pickle.dumps(model, protocol=_PROTOCOL)})
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise InvalidInput(f"{type(model).__name__} can't be pickled: {error}") from error

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The object, unpickled: whatever its file says is run."""
        if not trust.pickle:
            raise Denied(
                f"model {cid} is a pickle, and opening one runs whatever it says. If somebody whose key you trust has signed it, "
                "say allow_pickle=True; better, store the model again in a format of its framework"
            )
        data = bytes(store.open(store.resolve(f"{record.files}/{_FILE}")))
        try:
            return pickle.loads(data)  # noqa: S301 -- verified, and from a trusted signer
        except (AttributeError, EOFError, ImportError, IndexError, pickle.UnpicklingError) as error:
            raise Corrupt(f"the pickle of model {cid} can't be opened: {error}") from error
