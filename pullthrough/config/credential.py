"""The login at the upstream, as it is now."""

from __future__ import annotations

from pullthrough.config.model import Proxy
from pullthrough.config.search import ConfigError
from pullthrough.config.values import Invalid, read_password


def read_credential(proxy: Proxy) -> tuple[str, str] | None:
    """Return user name and password, None where none is configured; a password file is read anew.

    Raises :class:`ConfigError` when that file holds no password any more.
    """
    if proxy.username is None:
        return None
    if proxy.passwordfile is not None:
        try:
            return proxy.username, read_password(proxy.passwordfile)
        except Invalid as error:
            raise ConfigError(f"proxy.passwordfile: {error}") from None
    if proxy.password is None:
        return None
    return proxy.username, proxy.password.get_secret_value()
