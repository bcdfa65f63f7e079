"""The demo's images are such as a registry holds: each part names the next one rightly."""

import gzip
import io
import tarfile
from collections.abc import Callable

import orjson
import pytest

from pullthrough.demo.images import Image, app, tools
from pullthrough.oci.digest import Digest
from pullthrough.oci.manifest import DOCKER_MANIFEST, OCI_INDEX, parse


@pytest.mark.parametrize("make", [lambda: app(1), tools])
def test_the_same_image_every_time(make: Callable[[], Image]) -> None:
    """Two runs of the demo show the same digests."""
    assert make() == make()


@pytest.mark.parametrize("image", [app(1), tools()], ids=["index", "docker"])
def test_everything_that_is_named_is_there(image: Image) -> None:
    """Each descriptor has the digest and the size of something that the image holds."""
    held = {Digest.of(blob): len(blob) for blob in image.blobs}
    held |= {each.digest: len(each.content) for each in image.manifests}
    named = {image.digest: len(image.manifests[0].content)}
    for each in image.manifests:
        parsed = parse(each.content, each.media_type)
        for inner in (*parsed.manifests, *parsed.blobs):
            named[inner.digest] = inner.size or 0
    assert named == held


@pytest.mark.parametrize("image", [app(1), tools()], ids=["index", "docker"])
def test_layers_are_gzipped_tars_that_their_config_names(image: Image) -> None:
    """A client can unpack each layer, and finds the tar's digest in the config (config.md)."""
    blobs = {Digest.of(blob): blob for blob in image.blobs}
    images = [parsed for each in image.manifests if (parsed := parse(each.content)).blobs]
    assert images
    for each in images:
        config, *layers = each.blobs
        tars = [gzip.decompress(blobs[layer.digest]) for layer in layers]
        diff_ids = orjson.loads(blobs[config.digest])["rootfs"]["diff_ids"]
        assert diff_ids == [str(Digest.of(tar)) for tar in tars]
        for tar in tars:
            with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
                assert opened.getmembers()


def test_the_images_are_of_the_kinds_that_clients_meet() -> None:
    """There is an index of two platforms, and docker's own manifest."""
    index = parse(app(1).manifests[0].content)
    assert (index.media_type, len(index.manifests)) == (OCI_INDEX, 2)
    assert tools().manifests[0].media_type == DOCKER_MANIFEST


def test_a_new_version_shares_its_base_with_the_old() -> None:
    """Of each platform's config and two layers, the base layer alone stays."""
    old, new = set(app(1).blobs), set(app(2).blobs)
    assert (len(old & new), len(new - old)) == (2, 4)
    assert app(1).digest != app(2).digest
