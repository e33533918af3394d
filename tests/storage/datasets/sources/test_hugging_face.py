"""Hugging Face ``datasets``, the real package: in memory, on disk, selected, and streamed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from holdfast.errors import InvalidInput, NotFound, Unsupported
from holdfast.storage.datasets.sources import IMAGE, MEDIA, open_sources

hf = pytest.importorskip("datasets", reason="needs Hugging Face datasets: pip install 'holdfast[hf]'")


@pytest.fixture
def features():
    return hf.Features(
        {
            "image": hf.Image(),
            "label": hf.ClassLabel(names=["cat", "dog"]),
            "grid": hf.Array2D((2, 3), "float32"),
            "ragged": hf.Array2D((None, 3), "int64"),
            "words": hf.List(hf.Value("string")),
            "text": hf.Value("string"),
        }
    )


@pytest.fixture
def samples(png):
    return [
        {
            "image": {"bytes": png(i), "path": None} if i != 3 else None,
            "label": i % 2,
            "grid": np.full((2, 3), i, np.float32).tolist(),
            "ragged": [[i] * 3] * (i + 1),
            "words": ["w"] * i,
            "text": f"text {i}" if i else None,
        }
        for i in range(5)
    ]


@pytest.fixture
def dataset(samples, features):
    return hf.Dataset.from_list(samples, features=features)


def check(source, samples, order=range(5)):
    assert source.schema.field("image").equals(
        pa.field("image", pa.binary(), metadata={MEDIA: IMAGE}), check_metadata=True
    )
    assert source.schema.field("grid").type == pa.fixed_shape_tensor(pa.float32(), [2, 3])
    assert source.schema.field("label").type == pa.int64()
    assert source.metadata == {"classes": {"label": ["cat", "dog"]}}
    table = pa.Table.from_batches(source.batches(), source.schema)
    expected = [samples[i] for i in order]
    assert table["image"].to_pylist() == [row["image"] and row["image"]["bytes"] for row in expected]
    grids = np.concatenate([chunk.to_numpy_ndarray() for chunk in table["grid"].chunks])
    assert grids.tolist() == [row["grid"] for row in expected]
    for name in ("label", "ragged", "words", "text"):
        assert table[name].to_pylist() == [row[name] for row in expected]


def test_features_become_what_they_mean(dataset, samples):
    source = open_sources(dataset)["train"]
    assert source.rows == 5
    check(source, samples)
    check(source, samples)


def test_selected_shuffled_and_formatted_datasets_give_their_own_rows(dataset, samples):
    check(open_sources(dataset.select([4, 0, 3]))["train"], samples, [4, 0, 3])
    formatted = dataset.with_format("numpy", columns=["label"]).with_transform(lambda _: {"x": [1]})
    check(open_sources(formatted)["train"], samples)
    assert open_sources(dataset.select([1]))["train"].rows == 1


def test_datasets_on_disk_and_streamed_ones_are_the_same(dataset, samples, tmp_path):
    dataset.save_to_disk(tmp_path / "saved")
    check(open_sources(hf.load_from_disk(tmp_path / "saved"))["train"], samples)
    check(open_sources(dataset.to_iterable_dataset())["train"], samples)


def test_splits_of_dataset_dicts_are_kept(dataset, samples):
    splits = hf.DatasetDict(train=dataset.select(range(3)), test=dataset.select([3, 4]))
    sources = open_sources(splits)
    assert list(sources) == ["train", "test"]
    check(sources["test"], samples, [3, 4])
    streamed = hf.IterableDatasetDict(train=dataset.to_iterable_dataset())
    check(open_sources(streamed)["train"], samples)
    check(open_sources({"dev": dataset})["dev"], samples)


def test_a_stream_without_features_is_read_as_rows(read):
    stream = hf.IterableDataset.from_generator(lambda: ({"a": i, "b": str(i)} for i in range(3000)))
    assert stream.features is None
    assert read(stream).to_pylist() == [{"a": i, "b": str(i)} for i in range(3000)]


def test_images_that_are_only_named_are_read_into_the_dataset(write, png, read):
    paths = [str(write(f"{i}.png", png(i))) for i in range(20)]
    data = hf.Dataset.from_dict({"image": paths}).cast_column("image", hf.Image())
    assert read(data)["image"].to_pylist() == [png(i) for i in range(20)]
    write("7.png", "").unlink()
    with pytest.raises(NotFound, match=r"row 7 .*column 'image' names the file .*7\.png, which is not there"):
        read(data)


def test_unreadable_images_are_found_on_request(dataset, png):
    broken = dataset.select([0]).map(lambda _: {"image": {"bytes": png(0)[:-40], "path": None}})
    with pytest.raises(
        InvalidInput, match=r"the Hugging Face Dataset, row 0 .*column 'image': the image is unreadable"
    ):
        list(open_sources(broken, verify_images="fail")["train"].batches())


def test_what_would_lose_its_meaning_is_refused(samples):
    data = hf.Dataset.from_list(
        [{"x": [row["image"]]} for row in samples], features=hf.Features({"x": hf.List(hf.Image())})
    )
    with pytest.raises(Unsupported, match=r"column 'x' has images.* nested"):
        open_sources(data)
    grid = hf.Dataset.from_list(
        [{"g": [[1.0]]}, {"g": None}], features=hf.Features({"g": hf.Array2D((1, 1), "float64")})
    )
    with pytest.raises(InvalidInput, match=r"row 1 .*column 'g': an array is missing"):
        list(open_sources(grid)["train"].batches())


def test_the_same_rows_are_the_same_table_as_everywhere_else(rows, table, read):
    assert read(hf.Dataset.from_list(rows)).equals(table)
    assert read(hf.Dataset.from_list(rows).to_iterable_dataset()).equals(table)
