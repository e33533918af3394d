"""Whether a torch module would be the same again: before it is stored, its class is called as loading will call it."""

from __future__ import annotations

import functools
import inspect
import random
import types
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput
from holdfast.registry.models.torch_wrapper import TorchModelWrapper
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch

__all__ = ["check_made_again", "constructor_config", "draws_unseen", "misfit", "module_of"]

_SHOWN = 5
_RECORDED = {"config", "input_column", "input_shape"}
"""Attributes that a manifest keeps."""
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_ADVICE = (
    "Keep all arguments of its constructor as a dict in the attribute 'config', or store its state_dict()"
)


def constructor_config(module: torch.nn.Module | TorchModelWrapper) -> dict[str, Any]:
    """The keyword arguments that make such a module again: its attribute ``config``, or none.

    Raises:
        InvalidInput: Its class can't be called with them: it could be stored, but never loaded.
    """
    cls, config = type(module), getattr(module, "config", {})
    try:
        inspect.signature(cls).bind(**config)
    except TypeError as error:
        raise InvalidInput(
            f"{cls.__name__} can't be made again from its config {config!r:.100}: {error}. {_ADVICE}"
        ) from error
    return dict(config)


def module_of(model: torch.nn.Module | TorchModelWrapper) -> torch.nn.Module:
    """A module itself; one that has a wrapper's modules as its own."""
    import torch

    if isinstance(model, torch.nn.Module):
        return model
    joined = torch.nn.Module()
    for name, module in model.modules().items():
        joined.add_module(name, module)
    return joined


def check_made_again(model: torch.nn.Module | TorchModelWrapper, config: Mapping[str, Any]) -> None:
    """Refuse a module that its class does not make again: another state, other modules, or other settings.

    It is made without memory for its tensors where its constructor allows that. Attributes are compared where ``config`` does not
    say all that the constructor takes: only then they could come from an argument.

    Raises:
        InvalidInput: It could be stored, but what is loaded would be another; the message says what to change.
    """
    import torch

    kind = type(model).__name__
    if isinstance(model, TorchModelWrapper) and not model.modules():
        raise InvalidInput(
            f"{kind} has no torch module in its attributes, so there are no weights to store; modules in lists or dicts belong "
            "into an nn.ModuleList or nn.ModuleDict"
        )
    # As they are read from a manifest: without tuples.
    arguments: dict[str, Any] = dag_cbor.decode(dag_cbor.encode(dict(config)))
    try:
        with draws_unseen(), torch.device("meta"):
            again = type(model)(**arguments)
        difference = _Comparison(model, again).difference(arguments)
    except Exception:  # noqa: BLE001 -- values may be needed, by the constructor or to compare, and are missed in many ways
        try:
            with draws_unseen():
                again = type(model)(**arguments)
            difference = _Comparison(model, again).difference(arguments)
        except Exception as error:
            raise InvalidInput(
                f"{kind} can't be made again from its config {config!r:.100}: {type(error).__name__}: {error}. {_ADVICE}"
            ) from error
    if difference:
        raise InvalidInput(
            f"{kind} would be another when it is made again from its config {config!r:.100}: {difference}. {_ADVICE}"
        )


def misfit(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], *, one: str, other: str
) -> str | None:
    """Why tensors of these shapes are not those of a state; None if they are.

    Args:
        state: Of a module.
        shapes: What was stored.
        one: What has the shapes, in words.
        other: What has the state.
    """
    import torch

    def few(names: set[str]) -> str:
        return ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

    if missing := state.keys() - shapes.keys():
        return f"{one} lack {few(missing)}"
    if more := shapes.keys() - state.keys():
        return f"{other} has no {few(more)}"
    for name, tensor in state.items():
        if torch.nn.parameter.is_lazy(tensor):
            return f"{name} of {other} has no shape before it is used"
        if tuple(tensor.shape) != shapes[name]:
            return f"{name} is of shape {shapes[name]}, and not {tuple(tensor.shape)}"
    return None


@contextmanager
def draws_unseen() -> Iterator[None]:
    """Afterwards the random generators are as they were: what was drawn, nobody else notices."""
    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 -- users' code draws from it
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 -- as above


class _Comparison:
    """A model beside the one that was made again."""

    def __init__(self, model: Any, again: Any) -> None:
        self._pair = (model, again)
        self._roots = (module_of(model), module_of(again))
        # What is part of the state is compared as such, wherever else it stands.
        self._known = tuple(
            {
                id(part): name
                for parts in (root.named_parameters, root.named_modules)
                for name, part in parts(remove_duplicate=False)
            }
            for root in self._roots
        )
        self._compared: dict[tuple[int, int], Any] = {}

    def difference(self, arguments: Mapping[str, Any]) -> str | None:
        """In what the two are not the same, in words; values of the state aside."""
        state, made = (root.state_dict() for root in self._roots)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if hasattr(tensor, "shape")}
        if wrong := misfit(made, shapes, one="its weights", other="the new one"):
            return wrong
        mine, new = (dict(root.named_modules(remove_duplicate=False)) for root in self._roots)
        for name in sorted({*mine, *new}):
            kinds = [_kind(each[name]) if name in each else "nothing" for each in (mine, new)]
            if name and kinds[0] != kinds[1]:
                return f"{name} is {kinds[0]}, and would be {kinds[1]}"
        unsaid = _unsaid(self._pair[0], arguments)
        pairs = {name: (mine[name], new[name]) for name in mine if name} | {"": self._pair}
        for name, (here, there) in sorted(pairs.items()):
            if (found := self._other_attribute(here, there, every=bool(unsaid))) is not None:
                more = f" (the constructor takes {', '.join(unsaid)}, too)" if unsaid else ""
                return f"{name}.{found}{more}" if name else f"{found}{more}"
        return None

    def _other_attribute(self, here: Any, there: Any, *, every: bool) -> str | None:
        import torch

        buffers: set[str] = getattr(here, "_non_persistent_buffers_set", set())
        mine, new = _attributes(here), _attributes(there)
        for key in sorted({*mine, *new}):
            # Where all arguments are known, an attribute that differs is no setting, but a counter, a cache or the like.
            if (every or key in buffers or self._holds_modules(mine.get(key))) and (
                key not in mine or key not in new or not self._same(mine[key], new[key])
            ):
                said = [f"{each[key]!r:.60}" if key in each else "not there" for each in (mine, new)]
                if said[0] == said[1] or any(isinstance(each.get(key), torch.Tensor) for each in (mine, new)):
                    return f"{key} has values that are not in its state"
                return f"{key} is {said[0]}, and would be {said[1]}"
        return None

    def _holds_modules(self, value: Any) -> bool:
        """Whether there are modules in it that are not part of the state."""
        import torch

        if isinstance(value, torch.nn.Module):
            return id(value) not in self._known[0]
        inner: Iterable[Any] = ()
        if isinstance(value, dict):
            inner = value.values()
        elif isinstance(value, (list, tuple, set)):
            inner = value
        elif isinstance(value, TorchModelWrapper):
            inner = vars(value).values()
        return any(self._holds_modules(each) for each in inner)

    def _same(self, one: Any, other: Any) -> bool:
        import numpy as np
        import torch

        known, its = self._known[0].get(id(one)), self._known[1].get(id(other))
        if one is other or known is not None or its is not None:
            return known == its
        if _kind(one) != _kind(other):
            return False
        if (id(one), id(other)) in self._compared:
            return True
        self._compared[id(one), id(other)] = (one, other)  # an id is theirs as long as they live
        if isinstance(one, torch.Tensor):
            return (
                one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.cpu(), other.cpu())
            )
        if isinstance(one, np.ndarray):
            return bool(
                one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
            )
        if isinstance(one, dict):
            return one.keys() == other.keys() and all(self._same(one[key], other[key]) for key in one)
        if isinstance(one, (list, tuple)):
            return len(one) == len(other) and all(map(self._same, one, other))
        inner = [_inner(each) for each in (one, other)]
        if inner[0] is not None:
            return self._same(*inner)
        return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 -- not a number


def _inner(value: Any) -> Any:
    """What an object consists of, if that says all about it."""
    import torch

    if isinstance(value, torch.nn.Module):
        modules = dict(value.named_modules())
        return [
            value.state_dict(),
            {name: [_kind(each), _attributes(each)] for name, each in modules.items()},
        ]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    compares = any("__eq__" in vars(cls) for cls in type(value).__mro__[:-1])
    return None if compares else getattr(value, "__dict__", None) or None


def _attributes(of: Any) -> dict[str, Any]:
    """Attributes that are neither torch's own nor in a manifest, and buffers that are not in the state."""
    import torch

    own = {*vars(torch.nn.Module()), "_compiled_call_impl", *_RECORDED}
    found = {key: value for key, value in vars(of).items() if key not in own}
    return found | {key: getattr(of, key) for key in getattr(of, "_non_persistent_buffers_set", ())}


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _unsaid(model: Any, arguments: Mapping[str, Any]) -> list[str]:
    """The parameters of a constructor of which the config says nothing."""
    return [
        name
        for name, parameter in inspect.signature(type(model)).parameters.items()
        if name not in arguments and not (parameter.kind in _VARIADIC and hasattr(model, "config"))
    ]
