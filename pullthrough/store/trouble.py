"""What may be wrong with a bucket: boto3's many failures, as the few kinds that matter here."""

from __future__ import annotations

import re
from enum import Enum
from http import HTTPStatus
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    ConfigParseError,
    ConnectionError,  # noqa: A004 - botocore's, which is not Python's
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

FOREIGN: Final = (BotoCoreError, ClientError, ResponseParserError, HTTPError)
"""What boto3 raises."""


class Trouble(Enum):
    """What kind of failure it is."""

    AWAY = "away"
    """Refused, silent, cut, overloaded or failing: it may be back."""
    REFUSED = "refused"
    """The key, or what it may do."""
    NO_BUCKET = "no bucket"
    WRONG_REGION = "wrong region"
    CLOCK = "clock"
    """This machine's clock, or the store's, is off."""
    FULL = "full"
    OTHER = "other"


class BucketError(Exception):
    """The bucket did not do it; ``message`` is one line, without secrets and signed URLs."""

    def __init__(self, trouble: Trouble, message: str) -> None:
        super().__init__(message)
        self.trouble = trouble
        self.message = message


class Absent(BucketError):
    """There is no such object, or no such upload."""


_Why = tuple[Trouble, str]

_CLOCK: Final = (Trouble.CLOCK, "this machine's clock and the bucket's differ")
_UNKNOWN: Final = (Trouble.REFUSED, "the access key is not known there, or no longer good")
_SECRET: Final = (Trouble.REFUSED, "the secret key is wrong")
_MAY_NOT: Final = (Trouble.REFUSED, "the key may not do this")
_NO_BUCKET: Final = (Trouble.NO_BUCKET, "there is no such bucket")
_ELSEWHERE: Final = (Trouble.WRONG_REGION, "")
_FULL: Final = (Trouble.FULL, "it is full")
_FAILS: Final = (Trouble.AWAY, "it fails")
# botocore makes a 500 of a 200 that is no XML too.
_FAILS_MUTELY: Final = (Trouble.AWAY, "it fails, or is not an S3 service")
_NOT_S3: Final = (Trouble.OTHER, "what answers there is not an S3 service")

_BY_CODE: Final[dict[str, _Why]] = {
    "RequestTimeTooSkewed": _CLOCK,
    "InvalidAccessKeyId": _UNKNOWN,
    "ExpiredToken": _UNKNOWN,
    "InvalidToken": _UNKNOWN,
    "SignatureDoesNotMatch": _SECRET,
    "AccessDenied": _MAY_NOT,
    "NoSuchBucket": _NO_BUCKET,
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "301": _ELSEWHERE,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "507": _FULL,
    "RequestTimeout": _FAILS,
}

# The first that fits: botocore's kinds are made of one another.
_BY_KIND: Final[tuple[tuple[tuple[type[Exception], ...], _Why], ...]] = (
    (
        (NoCredentialsError,),
        (Trouble.REFUSED, "there are no keys for it, in the configuration or elsewhere"),
    ),
    ((PartialCredentialsError,), (Trouble.REFUSED, "of its two keys one is missing")),
    (
        (CredentialRetrievalError, TokenRetrievalError),
        (Trouble.REFUSED, "its keys could not be fetched"),
    ),
    (
        (ProfileNotFound, ConfigNotFound, ConfigParseError),
        (Trouble.REFUSED, "AWS's own configuration on this machine is broken"),
    ),
    ((SSLError,), (Trouble.AWAY, "it does not talk TLS")),
    ((ConnectTimeoutError, ReadTimeoutError), (Trouble.AWAY, "it does not answer in time")),
    ((EndpointConnectionError,), (Trouble.AWAY, "it cannot be reached")),
    (
        (HTTPError, HTTPClientError, ConnectionError, IncompleteReadError),
        (Trouble.AWAY, "the connection was cut"),
    ),
    ((ResponseParserError,), _NOT_S3),
)


def translated(error: Exception, where: str, region: str) -> BucketError:
    """Return boto3's ``error`` as one of ours, about the bucket ``where``, asked in ``region``."""
    if isinstance(error, ClientError):
        return _answered(error, where, region)
    trouble, why = _failed(error)
    return BucketError(trouble, f"{where}: {why}")


def _answered(error: ClientError, where: str, region: str) -> BucketError:
    told = error.response.get("ResponseMetadata", {})
    status = told.get("HTTPStatusCode", 0)
    given = str(error.response.get("Error", {}).get("Code", ""))
    code = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else str(status)
    shown = f"HTTP {status}" if code == str(status) else f"{code}, HTTP {status}"
    # The answer to HEAD has no body, so all that is known of it is its status.
    head = error.operation_name == "HeadObject"
    if code in {"NoSuchKey", "NoSuchUpload"} or (head and status == HTTPStatus.NOT_FOUND):
        return Absent(Trouble.OTHER, f"{where}: it is not there ({shown})")
    trouble, why = _BY_CODE.get(code) or _by_status(status, bodiless=code == str(status))
    if trouble is Trouble.WRONG_REGION:
        theirs = told.get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
        known = re.fullmatch(r"[a-z0-9-]{1,64}", theirs)
        why = f"it is in {theirs if known else 'another region'}, not in {region}"
    return BucketError(trouble, f"{where}: {why} ({shown})")


def _by_status(status: int, *, bodiless: bool) -> _Why:
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        return _FAILS_MUTELY if bodiless else _FAILS
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return _MAY_NOT
    return _NOT_S3 if bodiless else (Trouble.OTHER, "it does not do this")


def _failed(error: Exception) -> _Why:
    """Return what to say of a failure that is no answer of the bucket's."""
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Trouble.OTHER, "its certificate is not trusted"
    for kinds, why in _BY_KIND:
        if isinstance(error, kinds):
            return why
    return Trouble.OTHER, f"it failed with {type(error).__name__}"
