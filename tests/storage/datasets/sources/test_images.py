"""Images: bytes as they are in the file, labels from folders, and a check of each only where it is asked for."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources import IMAGE, MEDIA, open_sources

MARKED = pa.field("image", pa.binary(), metadata={MEDIA: IMAGE})


@pytest.fixture
def classes(write, png):
    """Two splits with two classes each, of which one is in both."""
    write("train/dog/2.png", png(2))
    write("train/dog/10.png", png(1))
    write("train/cat/deep/er/x.PNG", png(3))
    write("train/cat/.hidden", b"")
    return write("test/dog/1.png", png(4)).parents[2]


def test_folders_are_labels_that_mean_the_same_in_every_split(classes, png):
    sources = open_sources(path=classes)
    assert list(sources) == ["train", "test"]
    for source in sources.values():
        assert source.schema.equals(pa.schema([MARKED, ("label", pa.int64())]), check_metadata=True)
        assert source.metadata == {"classes": {"label": ["cat", "dog"]}}
    rows = {
        split: [row for b in source.batches() for row in b.to_pylist()] for split, source in sources.items()
    }
    assert rows == {
        "train": [
            {"image": png(3), "label": 0},
            {"image": png(1), "label": 1},
            {"image": png(2), "label": 1},
        ],
        "test": [{"image": png(4), "label": 1}],
    }
    assert sources["train"].rows == 3
    assert sources["train"].size_bytes == len(png(1)) + len(png(2)) + len(png(3))


def test_a_folder_of_classes_without_splits_is_one_split(classes):
    assert open_sources(path=classes / "train")["train"].metadata == {"classes": {"label": ["cat", "dog"]}}
    as_classes = open_sources({"train": classes})["train"]
    assert as_classes.metadata == {"classes": {"label": ["test", "train"]}}
    assert as_classes.rows == 4


def test_images_without_classes_have_no_labels(write, png, read, read_splits):
    path = write("flat/b.png", png(2))
    folder = write("flat/a.png", png(1)).parent
    assert read(path=path).to_pylist() == [{"image": png(2)}]
    assert read(path=folder).to_pylist() == [{"image": png(1)}, {"image": png(2)}]
    write("splits/train/a.png", png(1))
    assert read_splits(path=write("splits/test/a.png", png(2)).parents[1])["test"].to_pylist() == [
        {"image": png(2)}
    ]


def test_something_else_among_images_is_never_left_out_silently(classes, write):
    write("train/dog/notes.csv", "a\n1\n")
    with pytest.raises(InvalidInput, match=r"notes\.csv is no image"):
        open_sources(path=classes)
    write("train/dog/notes.csv", "").unlink()
    write("train/dog/labels.bin", "")
    with pytest.raises(InvalidInput, match=r"labels\.bin does not tell its format"):
        open_sources(path=classes)


def test_many_images_come_in_bounded_batches_in_order(write):
    for i in range(10):
        folder = write(f"many/{i}.jpg", bytes([i]) * (3 << 20)).parent
    batches = list(open_sources(path=folder)["train"].batches())
    assert [batch.num_rows for batch in batches] == [2] * 5
    assert [image[0] for batch in batches for image in batch["image"].to_pylist()] == list(range(10))


def test_unreadable_images_fail_or_are_left_out_and_counted_as_asked(write, png, classes):
    write("train/dog/3.png", png(1)[:-40])
    write("train/dog/4.png", "no image")
    write("train/dog/5.png", "")

    def labels(how):
        source = open_sources(path=classes, verify_images=how)["train"]
        return [label for batch in source.batches() for label in batch["label"].to_pylist()], source

    found, source = labels(None)
    assert (found, source.rows, source.skipped) == ([0, 1, 1, 1, 1, 1], 6, 0)
    found, source = labels("skip")
    assert (found, source.rows, source.skipped) == ([0, 1, 1], None, 3)
    assert len(list(source.batches())) == 1
    assert source.skipped == 3
    assert source.metadata == {"classes": {"label": ["cat", "dog"]}}
    with pytest.raises(
        InvalidInput, match=r"train/dog/3\.png, column 'image': the image is unreadable.*verify_images='skip'"
    ):
        labels("fail")


def test_good_images_pass_the_check(classes, png):
    source = open_sources(path=classes, verify_images="fail")["test"]
    assert [row for batch in source.batches() for row in batch.to_pylist()] == [{"image": png(4), "label": 1}]
    assert source.rows == 1


def test_data_without_images_is_not_changed_by_the_check():
    table = pa.table({"a": [1]})
    source = open_sources(table, verify_images="fail")["train"]
    assert pa.Table.from_batches(source.batches()).equals(table)


class Pictures(torch.utils.data.Dataset[object]):
    def __init__(self, mode="RGB"):
        self.mode = mode

    def __len__(self):
        return 3

    def __getitem__(self, index):
        from PIL import Image

        image = Image.fromarray(np.random.default_rng(index).integers(0, 255, (6, 7, 3), np.uint8))
        return (image.convert("L") if self.mode == "I;16" else image).convert(self.mode), index


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "I;16"])
def test_pillow_images_of_torch_datasets_lose_nothing(mode, png):  # noqa: ARG001 -- skips without Pillow
    from PIL import Image

    data = Pictures(mode)
    source = open_sources(data, verify_images="fail")["train"]
    assert source.schema.equals(pa.schema([MARKED.with_name("0"), ("1", pa.int64())]), check_metadata=True)
    for row, (image, label) in zip(
        pa.Table.from_batches(source.batches()).to_pylist(), map(data.__getitem__, range(3)), strict=True
    ):
        stored = Image.open(io.BytesIO(row["0"]))
        assert (stored.format, stored.mode, row["1"]) == ("PNG", mode, label)
        assert stored.tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["CMYK", "I", "F", "HSV"])
def test_an_image_that_png_does_not_have_is_named(mode, png):  # noqa: ARG001 -- skips without Pillow
    with pytest.raises(InvalidInput, match=r"row 0 .*column '0': <PIL.* can't become a PNG: .* mode"):
        list(open_sources(Pictures(mode))["train"].batches())


def test_images_and_other_values_do_not_mix(png):  # noqa: ARG001 -- skips without Pillow
    rows = [{"x": Pictures()[0][0]}, {"x": b"bytes"}]
    with pytest.raises(InvalidInput, match=r"row 1 .*column 'x': b'bytes' is of the kind bytes, .* image"):
        open_sources(rows)
    late = [{"x": Pictures()[0][0]}, {"x": None}] * 600 + [{"x": b"bytes"}]
    with pytest.raises(InvalidInput, match=r"row 1200 .*column 'x': b'bytes' .* image"):
        list(open_sources(late)["train"].batches())
