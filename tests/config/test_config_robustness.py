"""Nothing that can stand in a file or an environment makes loading fall over, or tell a secret."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pullthrough.config import load
from pullthrough.config.schema import ACTED_ON, IGNORED, REFUSED

PATHS = sorted({*ACTED_ON, *IGNORED, *REFUSED})
KEYS = st.sampled_from(sorted({key for path in PATHS for key in path})) | st.text(max_size=8)
SECRET = "hunter2"
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.dates(),
    st.binary(max_size=4),
    st.text(max_size=20),
    st.sampled_from(
        [
            "0.1",
            "5s",
            ":5000",
            "http://a",
            "10.0.0.1",
            "auto",
            "htpasswd",
            "\0",
            "\ud800",
            "s3",
            "5GiB",
            "80%",
        ]
    ),
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Make a document in which known keys hold anything."""
    document: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(PATHS), max_size=8)):
        here = document
        for key in path[:-1]:
            below = here.setdefault(key, {})
            here = below if isinstance(below, dict) else {}
        here[path[-1]] = draw(DOCUMENTS)
    return document


# Signs that mean something in YAML, and words that mean something here.
TEXTS = st.lists(
    st.sampled_from([*"[]{}:,-?!&*#|>'\"%@`~<\n \t\\=", "\n  ", ": ", "&a ", "*a", "<<: ", "---\n",
                     "proxy", "remoteurl", "auth", "\\x00", "!!", "é", "\ufeff", "\x00"]),
    max_size=60,
).map("".join)  # fmt: skip


def _check(content: bytes, environ: dict[str, str] | None = None) -> list[str]:
    with TemporaryDirectory() as directory:
        file = Path(directory) / "config.yml"
        file.write_bytes(content)
        loaded = load(file, environ or {})
    assert (loaded.config is None) == bool(loaded.problems)
    said = [str(finding) for finding in (*loaded.problems, *loaded.notices)]
    for line in said:
        line.encode()
    return said


@given(st.binary(max_size=200) | TEXTS.map(str.encode))
@settings(deadline=None, max_examples=300)
def test_no_bytes_make_it_fall_over(content: bytes) -> None:
    """Whatever the bytes are, there is a configuration or there are problems."""
    _check(content)


@given(configurations() | DOCUMENTS)
@settings(deadline=None, max_examples=300)
def test_no_document_makes_it_fall_over(document: Any) -> None:
    """The same for YAML in which any key holds any value."""
    _check(yaml.dump(document, allow_unicode=True).encode(errors="replace"))


@given(
    configurations(),
    st.dictionaries(
        st.lists(KEYS | st.sampled_from(["0", "1", "²", ""]), max_size=4).map(
            lambda keys: "REGISTRY_" + "_".join(keys).upper()
        ),
        TEXTS | SCALARS.map(str),
        max_size=6,
    ),
)
@settings(deadline=None, max_examples=300)
def test_no_environment_makes_it_fall_over(document: Any, environ: dict[str, str]) -> None:
    """The same with variables over it, well-formed or not."""
    _check(yaml.dump(document).encode(), environ)


@given(
    st.sampled_from(
        [
            "PROXY_PASSWORD",
            "HTTP_SECRET",
            "REDIS_PASSWORD",
            "STORAGE_S3_ACCESSKEY",
            "STORAGE_S3_SECRETKEY",
            "STORAGE_S3_SESSIONTOKEN",
        ]
    ),
    TEXTS,
    TEXTS,
    st.sampled_from(["{0}", "[{0}]", "'{0}'", "*{0}", "!{0} a", "@{0}", "{{{0}: a, {0}: b}}"]),
)
@settings(deadline=None, max_examples=300)
def test_no_secret_is_ever_repeated_whatever_stands_around_it(
    variable: str, before: str, after: str, form: str
) -> None:
    """It is not told as text, alias, tag or key of a variable's value."""
    said = _check(b"", {f"REGISTRY_{variable}": f"{before}{form.format(SECRET)}{after}"})
    assert not [line for line in said if SECRET in line]
