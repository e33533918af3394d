from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.errors import InvalidInput, Unsupported
from holdfast.inference._oip_codec import decode_request, encode_response
from holdfast.inference._tensors import DATATYPE_OF_DTYPE, DTYPE_OF_DATATYPE, TensorInfo

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@st.composite
def arrays(draw, *, finite):
    datatype = draw(st.sampled_from(sorted(DTYPE_OF_DATATYPE)))
    dtype = DTYPE_OF_DATATYPE[datatype]
    if datatype == "BYTES":
        return draw(hnp.arrays(dtype, SHAPES, elements=TEXT, fill=st.nothing()))
    elements = {"allow_nan": not finite, "allow_infinity": not finite} if dtype.kind == "f" else {}
    return draw(hnp.arrays(dtype, SHAPES, elements=elements))


def infos(tensors):
    return [TensorInfo(name=name, dtype=a.dtype, shape=(None,) * a.ndim) for name, a in tensors.items()]


def encoded(tensors, *, binary, **extra):
    """What an independent client would send."""
    items, blobs = [], []
    for name, array in tensors.items():
        item = {"name": name, "shape": list(array.shape), "datatype": DATATYPE_OF_DTYPE[array.dtype]}
        if binary:
            if array.dtype == object:
                blob = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in array.flat)
            else:
                blob = array.tobytes()
            item["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            item["data"] = array.tolist() if array.ndim and binary is None else array.ravel().tolist()
        items.append(item)
    head = json.dumps({"inputs": items, **extra}).encode()
    return head + b"".join(blobs), len(head) if binary else None


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from([True, False, None]))
def test_every_tensor_survives_the_way_in_and_out(data, binary):
    """``binary=None`` nests the JSON arrays, ``False`` flattens them."""
    count = data.draw(st.integers(1, 3))
    tensors = {f"t{i}": data.draw(arrays(finite=not binary)) for i in range(count)}
    body, length = encoded(tensors, binary=binary, id="7", parameters={"binary_data_output": bool(binary)})
    request = decode_request(body, header_length=length, inputs=infos(tensors), outputs=infos(tensors))
    assert request.id == "7"
    for name, array in tensors.items():
        assert request.inputs[name].dtype == array.dtype
        np.testing.assert_array_equal(request.inputs[name], array)
        assert request.inputs[name].flags.aligned
    answer, length = encode_response(
        request.inputs, model_name="m", model_version="1", request=request, parameters={"model_cid": "c"}
    )
    assert (length is None) is not bool(binary)
    message = json.loads(answer[:length])
    assert (message["id"], message["parameters"]) == ("7", {"model_cid": "c"})
    at = length or 0
    for item in message["outputs"]:
        size = item.get("parameters", {}).get("binary_data_size", 0)
        item["blob"] = answer[at : at + size]
        at += size
        array = tensors[item["name"]]
        assert (item["datatype"], item["shape"]) == (DATATYPE_OF_DTYPE[array.dtype], list(array.shape))
        if not binary:
            np.testing.assert_array_equal(np.array(item["data"], array.dtype).reshape(array.shape), array)
        elif array.dtype != object:
            assert item["blob"] == array.tobytes()
    assert at == len(answer) or not binary


X = [TensorInfo(name="x", dtype=np.dtype(np.float32), shape=("n", 2))]


def decoded(message, *, blob=b"", length=None, dtype=np.float32):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    info = [TensorInfo(name="x", dtype=np.dtype(dtype), shape=(None,) * 2)]
    return decode_request(
        body + blob, header_length=len(body) if length is None and blob else length, inputs=info, outputs=X
    )


def tensor(data, shape=(1, 2), datatype="FP32", **extra):
    return {"inputs": [{"name": "x", "shape": list(shape), "datatype": datatype, "data": data, **extra}]}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"inputs": [NaN]}', "NaN is not a JSON number"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ([], "must be a JSON object"),
        ({}, "'inputs' must be an array"),
        ({"inputs": {}}, "'inputs' must be an array"),
        ({"inputs": [3]}, "each input must be a JSON object"),
        ({"inputs": [], "id": 7}, "'id' must be a string"),
        ({"inputs": [], "parameters": []}, "'parameters' of the request must be a JSON object"),
        ({"inputs": [], "parameters": {"binary_data_output": 1}}, "must be true or false"),
        ({"inputs": [], "outputs": [{"name": "z"}]}, "no output 'z'; it gives 'x'"),
        ({"inputs": [{"name": "z"}]}, "no input 'z'; it takes 'x'"),
        ({"inputs": [{"name": ["x"]}]}, "no input"),
        ({"inputs": tensor([1, 2])["inputs"] * 2}, "there twice"),
        (tensor([1, 2], datatype="FP64"), "must have datatype FP32, not 'FP64'"),
        (tensor([1, 2], datatype=None), "must have datatype FP32"),
        (tensor([1, 2], shape=(-1, 2)), "'shape'"),
        (tensor([1, 2], shape=(True, 2)), "'shape'"),
        (tensor([1, 2], shape=(1.0, 2)), "'shape'"),
        (tensor([], shape=(0, 1 << 62, 1 << 62)), "no array can have this shape"),
        (tensor([], shape=[1] * 65), "no array can have this shape"),
        (tensor([1, 2, 3]), "needs 2 elements, and 'data' has 3"),
        (tensor([[1], [2]]), "holds a list"),
        (tensor([[1, 2], [3]], shape=(2, 2)), "needs 4 elements"),
        (tensor([[1, 2], 3], shape=(2, 2)), "needs 4 elements"),
        (tensor([[[1]], [[2]]]), "holds a list"),
        (tensor("12"), "'data' must be an array"),
        (tensor(None), "'data' must be an array"),
        (tensor([1, "2"]), "datatype FP32 holds a str"),
        (tensor([1, None]), "holds a NoneType"),
        (tensor([1, True]), "holds a bool"),
        (tensor([1, 1e300]), "outside the range of FP32"),
        (b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,1e999]}]}', "outside the range"),
        (tensor([1, 10**400]), "outside the range"),
        (
            tensor([1, 2], parameters={"binary_data_size": 8}),
            "8 bytes of binary data are announced, 0 are left",
        ),
        (tensor([1, 2], parameters={"binary_data_size": -1}), "-1 bytes"),
        (tensor([1, 2], parameters={"binary_data_size": 0}), "both"),
    ],
)
def test_each_kind_of_bad_request_has_its_own_message(message, words):
    with pytest.raises(InvalidInput) as caught:
        decoded(message)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("dtype", "datatype", "data", "words"),
    [
        (np.int8, "INT8", [1, 128], "outside the range of INT8"),
        (np.uint64, "UINT64", [1, -1], "outside the range of UINT64"),
        (np.int64, "INT64", [1, 1.5], "holds a float"),
        (np.bool_, "BOOL", [True, 1], "holds a int"),
        (np.float16, "FP16", [1, 70000], "outside the range of FP16"),
        (object, "BYTES", ["a", 1], "holds a int"),
    ],
)
def test_numbers_are_never_cut_wrapped_or_guessed(dtype, datatype, data, words):
    with pytest.raises(InvalidInput, match=words):
        decoded(tensor(data, datatype=datatype), dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "datatype", "blob", "words"),
    [
        (np.float32, "FP32", b"1234567", "needs 8 bytes, and 7 came"),
        (np.bool_, "BOOL", b"\1\2", "0 and 1 only"),
        (object, "BYTES", b"\1\0\0\0a\2\0\0\0b", "cut off"),
        (object, "BYTES", b"\1\0\0\0a\2\0", "cut off"),
        (object, "BYTES", b"\1\0\0\0a", "needs 2 strings, and 1 came"),
        (object, "BYTES", b"\1\0\0\0a\1\0\0\0\xff", "not UTF-8"),
    ],
)
def test_binary_tensors_of_another_size_or_content_are_refused(dtype, datatype, blob, words):
    message = tensor(0, datatype=datatype, parameters={"binary_data_size": len(blob)})
    del message["inputs"][0]["data"]
    with pytest.raises(InvalidInput, match=words):
        decoded(message, blob=blob, dtype=dtype)


def test_bytes_that_belong_to_nothing_are_refused():
    with pytest.raises(InvalidInput, match="3 bytes of binary data belong to no input"):
        decoded(tensor([1, 2]), blob=b"abc")
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length is 999"):
        decoded(tensor([1, 2]), length=999)


@pytest.mark.parametrize("name", ["classification", "shared_memory_region"])
def test_extensions_that_are_not_offered_are_refused_rather_than_ignored(name):
    with pytest.raises(Unsupported, match=name):
        decoded({"inputs": [], "outputs": [{"name": "x", "parameters": {name: 1}}]})


def test_nan_goes_out_in_binary_and_never_as_broken_json():
    outputs = {"x": np.array([[1, np.nan]], np.float32)}
    plain = decoded(tensor([1, 2]))
    with pytest.raises(Unsupported, match="binary_data"):
        encode_response(outputs, model_name="m", model_version="1", request=plain, parameters={})
    chosen = decoded(tensor([1, 2]) | {"outputs": [{"name": "x", "parameters": {"binary_data": True}}]})
    body, length = encode_response(outputs, model_name="m", model_version="1", request=chosen, parameters={})
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.float32), [1, np.nan])


def test_one_output_may_differ_from_the_default():
    request = decoded(
        tensor([1, 2])
        | {
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "x", "parameters": {"binary_data": False}}],
        }
    )
    body, length = encode_response(
        {"x": np.ones((1, 2), np.float32)}, model_name="m", model_version="1", request=request, parameters={}
    )
    assert length is None
    assert json.loads(body)["outputs"][0]["data"] == [1, 1]
