"""Who may ask: names, keys and origins as they are given, and what no request could have."""

from __future__ import annotations

import pytest

from understudy.errors import UsageError
from understudy.server.callers import checked_keys, checked_origins, host_names, in_url, is_loopback


def test_a_server_of_this_machine_alone_has_known_names() -> None:
    for address in ("127.0.0.1", "localhost", "LOCALHOST", "::1", "127.0.0.2", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"):
        assert is_loopback(address), address
        assert {"localhost", "127.0.0.1", "[::1]", in_url(address.lower())} <= set(host_names(address))
    for address in ("0.0.0.0", "::", "192.0.2.1", "nobody.invalid"):
        assert not is_loopback(address) and host_names(address) == ()


def test_other_names_are_as_browsers_write_them() -> None:
    found = host_names("0.0.0.0", ["My-Box.Example", "192.0.2.7", "2001:DB8::1", "[2001:db8::2]"])
    assert found[-4:] == ("my-box.example", "192.0.2.7", "[2001:db8::1]", "[2001:db8::2]")
    for name in ("http://box", "box:8000", "box/", "", "a b", "u@box"):
        with pytest.raises(UsageError, match="--allowed-host is a name alone"):
            host_names("127.0.0.1", [name])


def test_an_empty_key_is_none() -> None:
    assert checked_keys(["a", "schlüssel"]) == ("a", "schlüssel")
    for key in ("", " ", "a ", "\ta"):
        with pytest.raises(UsageError, match="A key"):
            checked_keys(["a", key])


def test_origins_are_what_browsers_say() -> None:
    said = ("https://chat.example", "http://127.0.0.1:3000", "app://obsidian.md", "*", "null")
    assert checked_origins(said) == said
    for origin in ("chat.example", "https://chat.example/", "https://chat.example/page", "", "https://"):
        with pytest.raises(UsageError, match="--allowed-origin is a scheme and a host"):
            checked_origins([origin])
