"""Who may ask: names, keys and origins as they are given, and what no request could have."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from understudy.errors import UsageError
from understudy.server.callers import (
    check_certificates,
    checked_keys,
    checked_origins,
    host_names,
    in_url,
    is_loopback,
    out_of_date,
)


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


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = trustme.CA()
    own, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    files = {name: str(tmp_path / name) for name in ("chain", "key", "other", "locked", "empty", "authority")}
    own.cert_chain_pems[0].write_to_path(files["chain"])
    own.private_key_pem.write_to_path(files["key"])
    other.private_key_pem.write_to_path(files["other"])
    authority.cert_pem.write_to_path(files["authority"])
    key = serialization.load_pem_private_key(own.private_key_pem.bytes(), None)
    kind = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret"))
    Path(files["locked"]).write_bytes(key.private_bytes(*kind))
    Path(files["empty"]).touch()
    check_certificates(files["chain"], files["key"])
    check_certificates(files["chain"], files["key"], files["authority"])
    for certificate, private, says in (
        ("chain", "other", "the key is that of another certificate"),
        ("key", "chain", "one of them holds no certificate, or no key"),
        ("empty", "key", "one of them holds no certificate, or no key"),
        ("chain", "empty", "one of them holds no certificate, or no key"),
        ("chain", "missing", "No such file"),
        # Nobody is asked for the password: a server that starts by itself would wait for ever.
        ("chain", "locked", "has a password: `openssl pkey"),
    ):
        given = [str(tmp_path / name) for name in (certificate, private)]
        with pytest.raises(UsageError, match=says) as error:
            check_certificates(*given)
        assert given[1] in str(error.value)
    with pytest.raises(UsageError, match=r"authorities' certificates .*empty cannot be used"):
        check_certificates(files["chain"], files["key"], files["empty"])


@pytest.mark.parametrize("chained", [False, True])
def test_a_certificate_that_clients_refuse_for_its_date_is_told(tmp_path: Path, chained: bool) -> None:
    authority = trustme.CA().create_child_ca() if chained else trustme.CA()
    today, month = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=30)
    ends = {"now": (-month, month), "expired": (-2 * month, -month), "not valid yet": (month, 2 * month)}
    for name, (first, last) in ends.items():
        own = authority.issue_cert("localhost", not_before=today + first, not_after=today + last)
        chain, key = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")
        Path(chain).write_bytes(b"".join(pem.bytes() for pem in own.cert_chain_pems))
        own.private_key_pem.write_to_path(key)
        note = out_of_date(chain, key)
        assert (name == "now") == (not note) and (not note or (name in note and chain in note))
