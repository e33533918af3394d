"""Encoded images become pixels, or an error that names the row; nothing is made up for one that can't be read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from holdfast.errors import Corrupt, InvalidInput, Unsupported
from holdfast.storage.datasets.dataset import open_dataset, store_dataset
from holdfast.storage.datasets.schema import MEDIA_KEY
from holdfast.storage.loaders.batch_steps import image_columns
from holdfast.storage.loaders.images import ImageDecoder
from holdfast.storage.loaders.torch_dataset import TorchDataset

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.dataset import Dataset


def pixels(seed: int, height: int = 6, width: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray[Any, Any] | Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind)
    return file.getvalue()


def dataset_of(store: ContentStore, images: Sequence[bytes | None]) -> Dataset:
    schema = pa.schema(
        [pa.field("image", pa.binary(), metadata={MEDIA_KEY: b"image"}), ("label", pa.int64())]
    )
    table = pa.table([pa.array(images, pa.binary()), range(len(images))], schema=schema)
    return open_dataset(store, store_dataset(store, table).cid)


def test_pixels_come_out_as_they_went_in(store):
    dataset = dataset_of(store, [encoded(pixels(n)) for n in range(10)])
    assert image_columns(dataset) == ("image",)
    (batch,) = TorchDataset(dataset, batch_size=10)
    assert batch["image"].shape == (10, 3, 6, 5)
    for n, image in enumerate(batch["image"].numpy()):
        assert np.array_equal(image.transpose(1, 2, 0), pixels(n))
    (only,) = TorchDataset(dataset, batch_size=10, columns=["label"])
    assert only["label"].tolist() == list(range(10))


@pytest.mark.parametrize("threads", [1, 3])
def test_every_kind_of_image_becomes_rgb(threads):
    grey = Image.fromarray(pixels(1)[:, :, 0])
    kinds = [
        encoded(pixels(2)),
        encoded(grey),
        encoded(Image.fromarray(pixels(3)).quantize(8)),
        encoded(Image.fromarray(pixels(4)).convert("RGBA")),
        encoded(Image.fromarray(pixels(5)).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(pixels(6)), "BMP"),
        encoded(grey.convert("1")),
    ]
    decoder = ImageDecoder(["image"], threads=threads)
    images = decoder({"image": kinds})["image"]
    decoder.close()
    assert images.shape == (7, 3, 6, 5)
    assert images.dtype == np.uint8
    assert np.array_equal(images[0].transpose(1, 2, 0), pixels(2))
    assert all(np.array_equal(channel, pixels(1)[:, :, 0]) for channel in images[1])
    assert np.array_equal(images[3].transpose(1, 2, 0), pixels(4))


def test_images_of_different_sizes_are_named_or_resized(store):
    images = [encoded(pixels(0)), encoded(pixels(1)), encoded(pixels(2, 9, 4))]
    dataset = dataset_of(store, images)
    with pytest.raises(InvalidInput) as failed:
        list(TorchDataset(dataset, batch_size=3))
    message = str(failed.value)
    assert "6x5 in row 0 " in message
    assert "9x4 in row 2 " in message
    assert "image_size" in message
    (batch,) = TorchDataset(dataset, batch_size=3, image_size=(8, 7))
    assert batch["image"].shape == (3, 3, 8, 7)
    wanted = Image.fromarray(pixels(2, 9, 4)).resize((7, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(batch["image"][2].numpy().transpose(1, 2, 0), np.asarray(wanted))


BAD = {
    "garbage": b"no image at all",
    "empty": b"",
    "truncated": encoded(pixels(1, 50, 50), "JPEG")[:300],
    "missing": None,
    "too deep": encoded(Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5) * 2000)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_an_unreadable_image_fails_with_its_row_and_column(store, bad):
    dataset = dataset_of(store, [encoded(pixels(n)) for n in range(4)] + [bad, encoded(pixels(5))])
    with pytest.raises(Corrupt) as failed:
        list(TorchDataset(dataset, batch_size=2, shuffle=True))
    message = str(failed.value)
    for part in ("row 4 of split 'train'", str(dataset.cid), "column 'image'", "bad_images='skip'"):
        assert part in message


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_and_counted_when_asked(store, bad, workers):
    from torch.utils.data import DataLoader

    images = [bad if n in (1, 4, 5) else encoded(pixels(n)) for n in range(8)]
    torch_dataset = TorchDataset(dataset_of(store, images), batch_size=2, bad_images="skip")
    batches = list(DataLoader(torch_dataset, batch_size=None, num_workers=workers))
    assert [batch["label"].tolist() for batch in batches] == [[0], [2, 3], [], [6, 7]]
    for batch in batches:
        for label, image in zip(batch["label"].tolist(), batch["image"].numpy(), strict=True):
            assert np.array_equal(image.transpose(1, 2, 0), pixels(label))
    seen = torch_dataset.counters()
    assert (seen["skipped_images"], seen["rows"]) == (3, 5)
    assert seen["image_s"] > 0


def test_single_rows_leave_out_the_unreadable_ones(store):
    dataset = dataset_of(store, [encoded(pixels(0)), b"", encoded(pixels(2))])
    rows = list(TorchDataset(dataset, batch_size=None, bad_images="skip"))
    assert [int(row["label"]) for row in rows] == [0, 2]
    assert rows[0]["image"].shape == (3, 6, 5)


def test_bytes_that_nobody_called_images_stay_bytes(store):
    dataset = store_dataset(store, pa.table({"data": [b"a", b"bc"]}))
    (batch,) = TorchDataset(dataset)
    assert batch["data"] == [b"a", b"bc"]


def test_a_decompression_bomb_is_a_bad_image(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Corrupt, match="DecompressionBomb"):
        ImageDecoder(["image"])({"image": [encoded(pixels(1, 50, 50))]})


def test_without_pillow_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(Unsupported, match=r"holdfast\[images\]"):
        ImageDecoder(["image"])
    assert ImageDecoder([])({"x": [1]}) == {"x": [1]}
