"""What goes wrong with a bucket is named, in one line and without a secret."""

from __future__ import annotations

import datetime as dt
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pullthrough.store.bucket import Bucket, BucketError, Settings, Trouble
from tests import rgw
from tests.servers.rgw import SECRET_KEY, Gateway, Rgw
from tests.store.bucket.fake import Answer, answering

KEY = "docker/registry/v2/blobs/sha256/ab/abcd/data"
MIB = 1 << 20


def trouble_of(call: Callable[[], object], *secrets: str) -> tuple[Trouble, str]:
    """Return what a call fails with, seeing to it that it is one line and tells no secret."""
    with pytest.raises(BucketError) as caught:
        call()
    error = caught.value
    chain: list[BaseException | None] = [error]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    told = "\n".join((*map(repr, chain), *map(str, chain), error.message, str(vars(error))))
    for secret in (SECRET_KEY, "X-Amz-Signature", "Signature=", *secrets):
        assert secret not in told
    assert str(error) == error.message
    assert len(error.message.splitlines()) == 1
    return error.trouble, error.message


def of_fake(settings: Settings, url: str) -> Bucket:
    """Open the bucket at a fake."""
    return Bucket(replace(settings, endpoint=url))


@pytest.fixture
def elsewhere() -> Settings:
    """Name a bucket where nothing is yet."""
    return Settings(
        bucket="images",
        region="us-east-1",
        access_key="AKIDEXAMPLE",
        secret_key=SECRET_KEY,
        path_style=True,
        chunk=5 * MIB,
        connect_timeout=2,
        read_timeout=0.3,
        attempts=1,
    )


def test_settings_tell_no_keys(settings: Settings) -> None:
    """The settings' repr has neither key."""
    assert settings.access_key is not None
    assert settings.access_key not in repr(settings)
    assert SECRET_KEY not in repr(settings)


class TestGateway:
    """On the real gateway."""

    def test_sound(self, bucket: Bucket) -> None:
        """A bucket that can be used has no trouble."""
        bucket.diagnose()

    def test_wrong_access_key(self, settings: Settings) -> None:
        """A key that nobody knows is refused by name, for every kind of call."""
        bucket = Bucket(replace(settings, access_key="NOBODY"))
        told = trouble_of(bucket.diagnose)
        assert told[0] is Trouble.REFUSED
        assert "access key is not known" in told[1]
        for call in (
            lambda: bucket.size(KEY),
            lambda: bucket.get(KEY, 1),
            lambda: bucket.put(KEY, b""),
            lambda: bucket.delete(KEY),
            lambda: list(bucket.objects("")),
            bucket.sweep,
        ):
            assert trouble_of(call)[0] is Trouble.REFUSED

    def test_wrong_secret_key(self, settings: Settings) -> None:
        """A wrong secret is told from a wrong access key, and is not told."""
        bucket = Bucket(replace(settings, secret_key="a-wrong-secret"))
        trouble, message = trouble_of(bucket.diagnose, "a-wrong-secret")
        assert trouble is Trouble.REFUSED
        assert "the secret key is wrong" in message

    def test_missing_bucket(self, settings: Settings) -> None:
        """A bucket that does not exist is named so; its objects are not merely absent."""
        bucket = Bucket(replace(settings, bucket="nowhere"))
        trouble, message = trouble_of(bucket.diagnose)
        assert trouble is Trouble.NO_BUCKET
        assert "bucket nowhere" in message
        assert trouble_of(lambda: bucket.get(KEY, 1))[0] is Trouble.NO_BUCKET
        assert trouble_of(lambda: bucket.put(KEY, b""))[0] is Trouble.NO_BUCKET

    def test_bucket_of_another(self, gateway: Gateway, settings: Settings) -> None:
        """A good key that may not use the bucket is refused, and so named."""
        user = uuid.uuid4().hex
        keys = ("--access-key", user, "--secret-key", "other-secret")
        gateway.admin("user", "create", f"--uid={user}", "--display-name=other", *keys)
        bucket = Bucket(replace(settings, access_key=user, secret_key="other-secret"))
        trouble, message = trouble_of(bucket.diagnose, "other-secret")
        assert trouble is Trouble.REFUSED
        assert "may not do this" in message

    def test_full(self, gateway: Gateway) -> None:
        """A user's quota that is used up is a full bucket."""
        user = uuid.uuid4().hex
        keys = ("--access-key", user, "--secret-key", "other-secret")
        gateway.admin("user", "create", f"--uid={user}", "--display-name=small", *keys)
        quota = ("quota", f"--uid={user}", "--quota-scope=user")
        gateway.admin("quota", "set", *quota[1:], "--max-size=4096")
        gateway.admin("quota", "enable", *quota[1:])
        theirs = replace_keys(gateway, user, "other-secret")
        bucket = Bucket(
            Settings(
                bucket=rgw.make_bucket(theirs),
                endpoint=gateway.url,
                access_key=user,
                secret_key="other-secret",
                path_style=True,
            )
        )
        trouble, message = trouble_of(lambda: bucket.put(KEY, b"x" * 8192), "other-secret")
        assert trouble is Trouble.FULL
        assert "it is full" in message

    @pytest.mark.parametrize("hours", [-3, 3])
    def test_clock(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
        """A clock that is off is not taken for a wrong key."""
        there = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(hours=hours)
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: there)
        trouble, message = trouble_of(bucket.diagnose)
        assert trouble is Trouble.CLOCK
        assert "clock" in message

    def test_untrusted_certificate(self, settings: Settings, gateway: Gateway) -> None:
        """A certificate that nobody vouches for is named, not taken for an outage."""
        bucket = Bucket(replace(settings, endpoint=gateway.tls_url))
        trouble, message = trouble_of(bucket.diagnose)
        assert trouble is Trouble.OTHER
        assert "certificate is not trusted" in message

    def test_tls_where_there_is_none(self, settings: Settings, gateway: Gateway) -> None:
        """HTTPS to a port of plain HTTP is a failure of TLS."""
        url = gateway.url.replace("http:", "https:")
        trouble, message = trouble_of(Bucket(replace(settings, endpoint=url)).diagnose)
        assert trouble is Trouble.AWAY
        assert "TLS" in message

    def test_no_keys(self, settings: Settings) -> None:
        """With no keys anywhere it is said so, when signing too."""
        bucket = Bucket(replace(settings, access_key=None, secret_key=None))
        for call in (bucket.diagnose, lambda: bucket.presign("GET", KEY, 60)):
            trouble, message = trouble_of(call)
            assert trouble is Trouble.REFUSED
            assert "no keys" in message

    def test_one_key(self, settings: Settings) -> None:
        """One key without the other is no login."""
        only = replace(settings, secret_key=None)
        assert trouble_of(lambda: Bucket(only).diagnose())[0] is Trouble.REFUSED

    def test_no_profile(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        """A profile that the environment names and nobody wrote is our kind of error too."""
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        only = replace(settings, access_key=None, secret_key=None)
        assert trouble_of(lambda: Bucket(only).diagnose())[0] is Trouble.REFUSED


def replace_keys(gateway: Gateway, access_key: str, secret_key: str) -> Gateway:
    """Return the same gateway as another user's."""
    return replace(gateway, access_key=access_key, secret_key=secret_key)


class TestOutage:
    """On a gateway of the test's own, which comes and goes."""

    @pytest.fixture
    def settings(self, own_rgw: Rgw, elsewhere: Settings) -> Settings:
        """Name a bucket there."""
        return replace(
            elsewhere,
            bucket=rgw.make_bucket(own_rgw.gateway),
            endpoint=own_rgw.gateway.url,
            access_key=own_rgw.gateway.access_key,
            read_timeout=1,
        )

    def test_killed_and_back(self, own_rgw: Rgw, settings: Settings) -> None:
        """A dead gateway is away; when it is back, so is everything."""
        bucket = Bucket(settings)
        bucket.put(KEY, b"content")
        own_rgw.kill()
        trouble, message = trouble_of(bucket.diagnose)
        assert trouble is Trouble.AWAY
        assert "cannot be reached" in message
        assert trouble_of(lambda: bucket.size(KEY))[0] is Trouble.AWAY
        own_rgw.restart()
        assert bucket.get(KEY, 7) == b"content"

    def test_silent(self, own_rgw: Rgw, settings: Settings) -> None:
        """A gateway that says nothing is away after the time that it is given."""
        bucket = Bucket(settings)
        bucket.put(KEY, b"content")
        own_rgw.pause()
        trouble, message = trouble_of(bucket.diagnose)
        assert trouble is Trouble.AWAY
        assert "in time" in message
        own_rgw.resume()
        bucket.diagnose()

    def test_killed_in_mid_upload(self, own_rgw: Rgw, settings: Settings, tmp_path: Path) -> None:
        """An upload that the gateway's death cuts leaves no object, and its parts are swept."""
        size = 30 * MIB
        content = os.urandom(size)
        (tmp_path / "file").write_bytes(content)
        bucket = Bucket(settings)
        asked = iter(range(1 << 20))

        def kill_in_the_middle() -> bool:
            if next(asked) == 20:  # blocks: the second part, or its hashing
                own_rgw.kill()
            return False

        with (tmp_path / "file").open("rb") as file:
            told = trouble_of(lambda: bucket.upload(KEY, file, size, stop=kill_in_the_middle))
            assert told[0] is Trouble.AWAY
            own_rgw.restart()
            assert bucket.size(KEY) is None
            assert bucket.sweep() == 1
            assert bucket.sweep() == 0
            assert bucket.upload(KEY, file, size)
        assert bucket.get(KEY, size) == content

    def test_killed_in_mid_read(self, own_rgw: Rgw, settings: Settings) -> None:
        """A read that is cut is an error, not a short object."""
        bucket = Bucket(settings)
        bucket.put(KEY, bytes(64 * MIB))
        with bucket.open(KEY) as chunks:
            assert chunks is not None
            next(chunks)
            own_rgw.kill()
            assert trouble_of(lambda: list(chunks))[0] is Trouble.AWAY


LISTING = """<?xml version="1.0"?>
<ListBucketResult><Name>images</Name><Prefix></Prefix><MaxKeys>1000</MaxKeys>
<IsTruncated>{more}</IsTruncated>{token}<Contents><Key>{key}</Key><Size>5</Size></Contents>
</ListBucketResult>"""
ERROR = "<Error><Code>{}</Code><Message>told\nin lines</Message></Error>"


class TestFake:
    """What the real gateway does not say, from a server that says it."""

    def test_listing_without_key_count(self, elsewhere: Settings) -> None:
        """A listing of two pages is read to its end without KeyCount (distribution#2553)."""

        def answer(method: str, path: str) -> Answer:
            assert method == "GET"
            if "continuation-token=next" in path:
                return Answer(body=LISTING.format(more="false", token="", key="b").encode())
            token = "<NextContinuationToken>next</NextContinuationToken>"
            return Answer(body=LISTING.format(more="true", token=token, key="a").encode())

        with answering(answer) as fake:
            assert list(of_fake(elsewhere, fake.url).objects("")) == [("a", 5), ("b", 5)]

    @pytest.mark.parametrize(
        ("answer", "trouble", "word"),
        [
            (
                Answer(301, ERROR.format("PermanentRedirect").encode()),
                Trouble.WRONG_REGION,
                "not in",
            ),
            (
                Answer(
                    301,
                    ERROR.format("PermanentRedirect").encode(),
                    {"x-amz-bucket-region": "eu-west-1"},
                ),
                Trouble.WRONG_REGION,
                "it is in eu-west-1, not in us-east-1",
            ),
            (
                Answer(400, ERROR.format("AuthorizationHeaderMalformed").encode()),
                Trouble.WRONG_REGION,
                "another region",
            ),
            (Answer(507, b""), Trouble.FULL, "full"),
            (Answer(503, ERROR.format("SlowDown").encode()), Trouble.AWAY, "SlowDown"),
            (Answer(502, b"<html>bad gateway"), Trouble.AWAY, "502"),
            (Answer(429, b""), Trouble.AWAY, "429"),
            (Answer(403, b""), Trouble.REFUSED, "403"),
            (Answer(404, b"<html>nothing</html>"), Trouble.OTHER, "not an S3 service"),
            (Answer(200, b"<html><p>welcome</html>"), Trouble.AWAY, "not an S3 service"),
            (Answer(200, b"<html>welcome</html>"), Trouble.OTHER, "not an S3 service"),
            (Answer(200, b'{"error": "none"}'), Trouble.AWAY, "not an S3 service"),
            (Answer(200, b""), Trouble.OTHER, "not an S3 service"),
            (Answer(200, b"<ListBucketResult>", cut=True), Trouble.AWAY, "it fails"),
            (Answer(400, ERROR.format("A code\nof lines").encode()), Trouble.OTHER, "400"),
        ],
    )
    def test_answers(
        self, elsewhere: Settings, answer: Answer, trouble: Trouble, word: str
    ) -> None:
        """Each answer is of its kind, and what it says stays out of the message."""
        with answering(lambda *_: answer) as fake:
            told = trouble_of(of_fake(elsewhere, fake.url).diagnose)
        assert told[0] is trouble
        assert "in lines" not in told[1]
        assert word in told[1]

    @pytest.mark.parametrize(
        ("change", "sent"),
        [
            ({}, {}),
            ({"encrypt": True}, {"x-amz-server-side-encryption": "AES256"}),
            (
                {"encrypt": True, "key_id": "a-key"},
                {
                    "x-amz-server-side-encryption": "aws:kms",
                    "x-amz-server-side-encryption-aws-kms-key-id": "a-key",
                },
            ),
            ({"key_id": "a-key"}, {}),
            ({"storage_class": "STANDARD_IA"}, {"x-amz-storage-class": "STANDARD_IA"}),
        ],
    )
    def test_wishes(
        self,
        elsewhere: Settings,
        tmp_path: Path,
        change: dict[str, bool | str],
        sent: dict[str, str],
    ) -> None:
        """Encryption and storage class go with each object that is made, and only there."""

        def answer(method: str, path: str) -> Answer:
            if method == "POST" and path.endswith("?uploads"):
                made = "<InitiateMultipartUploadResult><UploadId>u</UploadId>"
                return Answer(body=f"{made}</InitiateMultipartUploadResult>".encode())
            if method == "POST":
                done = (
                    b"<CompleteMultipartUploadResult><Key>k</Key></CompleteMultipartUploadResult>"
                )
                return Answer(body=done)
            if method == "HEAD":
                return Answer(body=bytes(6 * MIB))
            return Answer(headers={"ETag": '"tag"'})

        (tmp_path / "file").write_bytes(bytes(6 * MIB))
        with answering(answer) as fake, (tmp_path / "file").open("rb") as file:
            bucket = Bucket(replace(elsewhere, endpoint=fake.url, **change))  # type: ignore[arg-type]  # a table's values
            bucket.put(KEY, b"x")
            assert bucket.upload(KEY, file, 6 * MIB)
        made = [fake.asked[0], fake.asked[1]]
        assert [(method, path.partition("?")[2]) for method, path, _ in made] == [
            ("PUT", ""),
            ("POST", "uploads"),
        ]
        for _, _, headers in made:
            of_ours = ("x-amz-server-side", "x-amz-storage")
            assert {k: v for k, v in headers.items() if k.startswith(of_ours)} == sent
        for _, _, headers in fake.asked:
            assert "x-amz-trailer" not in headers
            assert not any(name.startswith("x-amz-checksum") for name in headers)

    def test_no_endless_retries(self, elsewhere: Settings) -> None:
        """A failing bucket is asked as often as the settings say, and no more."""
        with answering(lambda *_: Answer(500)) as fake:
            bucket = of_fake(replace(elsewhere, attempts=2), fake.url)
            assert trouble_of(bucket.diagnose)[0] is Trouble.AWAY
            assert len(fake.asked) == 2

    def test_region_is_not_changed_silently(self, elsewhere: Settings) -> None:
        """A hint at another region is not followed: the URLs that are signed would not be."""
        moved = Answer(
            301, ERROR.format("PermanentRedirect").encode(), {"x-amz-bucket-region": "r"}
        )
        with answering(lambda *_: moved) as fake:
            assert trouble_of(of_fake(elsewhere, fake.url).diagnose)[0] is Trouble.WRONG_REGION
            assert len(fake.asked) == 1

    def test_threads_share_it(self, elsewhere: Settings) -> None:
        """Many threads at once get each its own answer."""
        with answering(lambda _, path: Answer(body=path.partition("?")[0][-1:].encode())) as fake:
            bucket = of_fake(replace(elsewhere, read_timeout=10), fake.url)
            got: dict[int, bytes | None] = {}

            def get(number: int) -> None:
                got[number] = bucket.get(str(number), 1)

            threads = [threading.Thread(target=get, args=(number,)) for number in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert got == {number: str(number).encode() for number in range(10)}
