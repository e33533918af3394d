"""Arrow arrays as other types, where that changes no value.

Arrow's own casts round floats, make infinities of large ones, numbers of texts and of times, and drop time zones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from holdfast.storage.datasets.schema import type_text
from holdfast.storage.datasets.shards.arrays import with_children
from holdfast.storage.datasets.sources.kinds import Unfit
from holdfast.storage.datasets.sources.values import Misfit, first_failure

if TYPE_CHECKING:
    from typing import Any

__all__ = ["cast_exactly"]


def cast_exactly(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values of a logical type as another one: numbers as numbers that are equal, texts as texts, times as times.

    Raises:
        Misfit: The first value that would be another one, or none.
    """
    try:
        return _cast(array, kind)
    except (pa.ArrowException, Unfit) as error:
        index = first_failure(array, lambda some: _cast(some, kind))
        value = array[index]
        try:
            shown = value.as_py()
        except ValueError:  # nanoseconds, where there is no pandas
            shown = value
        raise Misfit(
            index, shown, f"is {type_text(array.type)} and can't be {type_text(kind)} unchanged: {error}"
        ) from error


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    own = array.type
    if own == kind:
        return array
    if pt.is_null(own) or array.null_count == len(array):
        return pa.nulls(len(array), kind)
    if _family(own) != _family(kind):
        raise Unfit("they are of different kinds")
    if pt.is_struct(kind):
        return _cast_structs(array, kind)
    if _family(kind) == "list":
        return _cast_lists(array, kind)
    if pt.is_map(kind):
        return with_children(array, kind, _cast)
    cast = array.cast(kind)
    lost = pc.not_equal(_compared(cast.cast(own, safe=False)), _compared(array))
    if pt.is_floating(own):
        lost = pc.and_not(lost, pc.is_nan(_compared(array)))  # NaN is never equal, and never lost
    if pc.any(lost).as_py():
        raise Unfit("it would be rounded")
    return cast


def _compared(array: pa.Array) -> pa.Array:
    """The array as one that Arrow compares: it does not have 16-bit floats there."""
    return array.cast(pa.float32()) if pt.is_float16(array.type) else array


def _cast_structs(array: pa.Array, kind: pa.DataType) -> pa.Array:
    children = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
    if unknown := [name for name in children if kind.get_field_index(name) < 0]:
        raise Unfit(f"it has more keys: {unknown}")
    size = len(array)
    columns = [
        _cast(children[field.name], field.type) if field.name in children else pa.nulls(size, field.type)
        for field in kind
    ]
    return pa.StructArray.from_arrays(columns, fields=list(kind), mask=array.is_null())


def _cast_lists(array: pa.Array, kind: pa.DataType) -> pa.Array:
    item = array.type.value_type
    array = array.cast(pa.list_(item, kind.list_size) if pt.is_fixed_size_list(kind) else pa.list_(item))
    return with_children(array, kind, _cast)


def _family(kind: pa.DataType) -> Any:
    """What two types have in common if a value of one may be one of the other."""
    if pt.is_integer(kind) or pt.is_floating(kind):
        return "number"
    if pt.is_timestamp(kind):
        return "time stamp", kind.tz is None
    families = {
        "bytes": (pt.is_binary, pt.is_fixed_size_binary),
        "date": (pt.is_date,),
        "time of day": (pt.is_time,),
        "duration": (pt.is_duration,),
        "decimal": (pt.is_decimal,),
        "struct": (pt.is_struct,),
        "list": (pt.is_list, pt.is_fixed_size_list),
        "map": (pt.is_map,),
    }
    return next((name for name, tests in families.items() if any(test(kind) for test in tests)), kind)
