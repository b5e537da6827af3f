"""Addresses of servers: http and https alone."""

import re
import urllib.request

from foveate.errors import InvalidOption


def address(url: str) -> str:
    """The address of a server without ``/v1``, with its scheme.

    Raises:
        InvalidOption: another scheme than http and https, or one without its slashes.
    """
    # localhost:8000 has no scheme.
    found = re.match(r"([a-z][a-z0-9+.-]*):(?!\d)(/*)(.*)", url, flags=re.IGNORECASE)
    if found is not None:
        scheme, slashes, rest = found.groups()
        if scheme.lower() not in ("http", "https"):
            raise InvalidOption(f"server {url!r}: allowed are http and https, such as http://localhost:8000")
        if slashes != "//":
            raise InvalidOption(f"server {url!r}: two slashes go there, {scheme}://{rest}")
    url = url.rstrip("/").removesuffix("/v1")
    return url if "://" in url else f"http://{url}"


def opener() -> urllib.request.OpenerDirector:
    """What opens http and https alone: urllib's own opener reads files, and follows redirects to ftp."""
    made = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        made.add_handler(handler)
    return made
