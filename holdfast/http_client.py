"""A small synchronous client for holdfast's own servers: JSON in, JSON out, errors as they were raised there."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

from holdfast.errors import HoldfastError, InvalidInput, Unavailable, error_from_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["HttpClient"]


class HttpClient:
    """Calls one server, always directly: the environment's proxies are not used.

    Args:
        url: ``http://host:port``.
        token: Sent as bearer token.
        timeout_s: Of the connection, and of each wait for more of the answer.

    Raises:
        InvalidInput: The URL is not of this form, or the token can't be sent.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port or 80
        except ValueError as error:
            raise InvalidInput(f"{url!r} has no valid port: {error}") from error
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/") or parts.query:
            raise InvalidInput(f"{url!r} is not the address of a holdfast server: http://<host>:<port>")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise InvalidInput("the token can't be sent: it has characters other than printable ASCII")
        self.url = f"http://{f'[{parts.hostname}]' if ':' in parts.hostname else parts.hostname}:{port}"
        self._address = (parts.hostname, port)
        self._token = token
        self._timeout_s = timeout_s

    def get(self, path: str, **query: Any) -> Any:
        """The answer to ``GET path?query``; arguments that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", f"{path}?{urlencode(given)}" if given else path)

    def post(self, path: str, body: Mapping[str, Any] | Iterable[bytes] | None = None) -> Any:
        """The answer to ``POST path``: a mapping goes as JSON, pieces of bytes as a stream."""
        return self._call("POST", path, body if body is not None else {})

    def delete(self, path: str) -> Any:
        """The answer to ``DELETE path``."""
        return self._call("DELETE", path)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | Iterable[bytes] | None = None) -> Any:
        headers = {"Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        payload: Any = body
        if hasattr(body, "keys"):
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        status, data = self._exchange(method, path, payload, headers)
        try:
            answer = json.loads(data) if data else None
        except ValueError:
            answer = data[:200]
            if status < 400:
                raise Unavailable(f"{self.url} is not a holdfast server: {answer!r}") from None
        if status >= 400:
            raise error_from_json(answer, where=f"{self.url}{path.partition('?')[0]} (HTTP {status})")
        return answer

    def _exchange(self, method: str, path: str, payload: Any, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer, whatever it is."""
        connection = http.client.HTTPConnection(*self._address, timeout=self._timeout_s)
        try:
            if payload is None or isinstance(payload, bytes):
                connection.request(method, path, payload, headers)
            else:
                headers["Transfer-Encoding"] = "chunked"
                # A server that refuses says so before it has read everything: its answer tells why.
                with contextlib.suppress(BrokenPipeError):
                    connection.request(method, path, iter(payload), headers, encode_chunked=True)
            response = connection.getresponse()
            return response.status, response.read()
        except HoldfastError:
            raise  # from the pieces of the body
        except http.client.InvalidURL as error:
            raise InvalidInput(f"{path!r:.200} is not a path of {self.url}: {error}") from error
        except ConnectionRefusedError as error:
            raise Unavailable(f"nothing listens at {self.url}: is it running?") from error
        except socket.gaierror as error:
            raise Unavailable(
                f"no machine is known as {self._address[0]!r}, so nothing at {self.url} can be asked; a URL is such as "
                "http://10.0.0.5:7400"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            what = "did not answer in time" if isinstance(error, socket.timeout) else f"broke off: {error}"
            raise Unavailable(f"{self.url} {what} ({method} {path.partition('?')[0]})") from error
        finally:
            connection.close()
