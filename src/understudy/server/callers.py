"""Who may ask a server: the names that it is called by, the keys, the origins and the certificates, each as it was given and as
requests have it."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable

from ..errors import UsageError

# Names that a browser or client calls this machine by.
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
# What browsers say of where a page comes from: no path, and no slash at the end.
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")

# What OpenSSL calls what is wrong with files of certificates; None: it has no name for it.
REASONS = {
    "KEY_VALUES_MISMATCH": "the key is that of another certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "the file holds none",
    None: "one of them holds no certificate, or no key",
}

# What is wrong with a certificate's date, by OpenSSL's numbers.
DATES = {9: "is not valid yet", 10: "has expired"}


def in_url(address: str) -> str:
    """An address as it stands in a URL and in the Host header."""
    return f"[{address}]" if ":" in address else address


def host_names(address: str, more: Iterable[str] = ()) -> tuple[str, ...]:
    """The names that the Host header may have at a server that listens at `address` and is called `more` too; empty: any.

    One that only this machine reaches has known names: a web page cannot reach it by renaming it. One that others reach may have
    others; its key protects it. UsageError for what is no name."""
    named = [_host_name(name) for name in more]
    if not named and not is_loopback(address):
        return ()
    return (*LOOPBACK, in_url(address.lower()), *named)


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine reaches `address`, a name or a number; False for one that is not known."""
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    numbers = [ipaddress.ip_address(str(where[0]).partition("%")[0]) for *_, where in found]
    return all((getattr(number, "ipv4_mapped", None) or number).is_loopback for number in numbers)


def checked_keys(keys: Iterable[str]) -> tuple[str, ...]:
    """`keys`, if a header can bring each of them. UsageError: an empty one would let everybody in, one with blanks nobody."""
    found = tuple(keys)
    if any(not key or key != key.strip() for key in found):
        raise UsageError("A key (--api-key, UNDERSTUDY_API_KEY) is a word: it is not empty, and no blank is at its ends.")
    return found


def checked_origins(origins: Iterable[str]) -> tuple[str, ...]:
    """`origins`, if browsers say them. UsageError for others, which no page would have."""
    found = tuple(origins)
    if wrong := [origin for origin in found if not ORIGIN.fullmatch(origin)]:
        raise UsageError(f"--allowed-origin is a scheme and a host, such as https://chat.example:8080, got {wrong[0]!r}.")
    return found


def check_certificates(certfile: str, keyfile: str, ca_certs: str | None = None) -> None:
    """Raise UsageError, which names the files, where TLS cannot be spoken with them. Nobody is asked for the password of a key: a
    server has nobody to answer."""

    def locked() -> str:
        raise UsageError(f"The TLS key {keyfile} has a password: `openssl pkey -in {keyfile} -out FILE` writes one without it.")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile, locked)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"The TLS certificate {certfile} and its key {keyfile} cannot be used: {_reason(error)}.") from None
    try:
        if ca_certs:
            context.load_verify_locations(ca_certs)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"The authorities' certificates {ca_certs} cannot be used: {_reason(error)}.") from None


def out_of_date(certfile: str, keyfile: str) -> str:
    """One sentence where clients will refuse these files, which can be used, for the date; else nothing."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(certfile, keyfile)
    client.check_hostname = False
    # the certificate vouches for itself: nothing but its date is looked at
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certfile)
    asked, answered = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(answered, asked), server.wrap_bio(asked, answered, server_side=True)
    # A client's greeting, the certificate, and what the client says of it.
    for end in (*ends, ends[0]):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            said = DATES.get(error.verify_code)
            return f"The TLS certificate {certfile} {said}: clients will refuse it." if said else ""
        except ssl.SSLError:
            # Its date was not looked at.
            return ""
    return ""


def _reason(error: OSError) -> str:
    """Why a file of certificates cannot be used, in words where the library has but a name for it."""
    if not isinstance(error, ssl.SSLError):
        return str(error.strerror)
    return REASONS.get(error.reason, str(error.reason))


def _host_name(given: str) -> str:
    """A name as the Host header has it, in small letters. UsageError where a scheme, a port or a path is about it."""
    bare = given.removeprefix("[").removesuffix("]").lower()
    try:
        return in_url(str(ipaddress.ip_address(bare)))
    except ValueError:
        pass
    if not re.fullmatch(r"[^\s:/\[\]@?#]+", given):
        raise UsageError(f"--allowed-host is a name alone, such as box.example, without scheme and port, got {given!r}.")
    return bare
