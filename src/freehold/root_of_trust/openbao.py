"""An AppRole session with an OpenBao server, for the transit key and for the KV store.

TLS is always verified, against the operator's own CA. Nothing of the environment plays a part: no proxy, no token of
somebody else's, no CA bundle; redirects are not followed, as they would carry the token away, and count as failures: a
standby node that sends a write on to another node has not done it. A token that ran out is
renewed by logging in again, once. Nothing else is tried twice here: the caller knows what may be repeated.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import hvac
import requests
from hvac import exceptions as refused

from freehold.root_of_trust.kek import CustodyUnavailable

T = TypeVar("T")
_TIMEOUT = 10.0


class OpenBaoSealed(CustodyUnavailable):
    """The server runs, but its own barrier is closed."""


class OpenBaoUnreachable(CustodyUnavailable):
    """Nobody answers there, or not as the server that the CA vouches for. What was under way may have been done."""


class OpenBaoDenied(CustodyUnavailable):
    """The AppRole is not accepted, or its policy does not allow this."""


class _SentOn(Exception):
    """Another node should be asked. hvac takes every status below 400 for success."""


class OpenBao:
    """Blocking; threads may share it. `secret_id` is asked at every log-in and not kept."""

    def __init__(self, address: str, ca: str, role_id: str, secret_id: Callable[[], str]) -> None:
        if not address.startswith("https://"):
            raise CustodyUnavailable(
                f"the OpenBao address {address!r} is not HTTPS", remedy="give https://… in custody.json"
            )
        session = requests.Session()
        session.trust_env = False
        session.hooks["response"].append(_no_redirect)
        session.verify = ca  # hvac prefers the session's setting to its own argument
        self.address = address
        self._role_id, self._secret_id = role_id, secret_id
        self._lock = threading.Lock()
        self._client = hvac.Client(
            url=address, token="", session=session, verify=ca, timeout=_TIMEOUT, allow_redirects=False
        )

    def __repr__(self) -> str:
        return f"OpenBao({self.address!r})"

    def call(self, what: str, work: Callable[[Any], T]) -> T:
        """`work(hvac client)`, logged in. `what` completes "cannot …" in the error.

        hvac's `InvalidPath` (404) and `InvalidRequest` (400) are for `work` to understand; here they count as failures.
        """
        with self._lock:
            if not self._client.token:
                self._log_in()
            token = self._client.token
        try:
            return self._once(what, work)
        except OpenBaoDenied:
            with self._lock:  # the token may have run out; if another thread renewed it already, that one serves
                if self._client.token == token:
                    self._log_in()
            return self._once(what, work)

    def _log_in(self) -> None:
        secret_id = self._secret_id()
        try:
            self._once("log in", lambda client: client.auth.approle.login(self._role_id, secret_id))
        except OpenBaoDenied as denied:
            raise OpenBaoDenied(
                f"OpenBao at {self.address} refuses the AppRole {self._role_id}",
                remedy="make a new secret id (`bao write -f auth/approle/role/freehold/secret-id`) and put it into the "
                "secret id's file",
            ) from denied

    def _once(self, what: str, work: Callable[[Any], T]) -> T:
        where = f"OpenBao at {self.address}"
        try:
            return work(self._client)
        except _SentOn:
            raise OpenBaoUnreachable(
                f"{where} is not the active node, so it cannot {what}",
                remedy="do this again; if it stays so, give the address of the active node in custody.json",
            ) from None
        except OSError as error:  # requests' errors derive from it
            certificate = isinstance(error, requests.exceptions.SSLError)
            raise OpenBaoUnreachable(
                f"{where} cannot be reached to {what}: {_reason(error)}",
                expected="a certificate that the operator's CA vouches for" if certificate else None,
                remedy="check address and `ca` in custody.json; never turn the check off"
                if certificate
                else "start it, or bring back its network; then do this again",
            ) from None
        except refused.VaultDown as error:
            if "sealed" in str(error):
                raise OpenBaoSealed(
                    f"{where} is sealed, so it cannot {what}",
                    remedy="unseal it (`bao operator unseal`); then do this again",
                ) from None
            raise OpenBaoUnreachable(
                f"{where} is not ready to {what}: {_said(error)}", remedy="do this again"
            ) from None
        except refused.VaultNotInitialized:
            raise OpenBaoSealed(f"{where} is not initialized", remedy="`bao operator init`") from None
        except (refused.Forbidden, refused.Unauthorized) as error:
            raise OpenBaoDenied(
                f"{where} does not allow us to {what}: {_said(error)}",
                remedy="give the AppRole the policy of docs/key-custody.md",
            ) from None
        except refused.InvalidRequest as error:
            if what == "log in":
                raise OpenBaoDenied(f"{where} does not let us log in: {_said(error)}") from None
            raise CustodyUnavailable(f"{where} cannot {what}: {_said(error)}") from None
        except refused.VaultError as error:
            raise OpenBaoUnreachable(
                f"{where} cannot {what}: {_said(error)}", remedy="look into its log; then do this again"
            ) from None


def _no_redirect(response: requests.Response, *_: object, **__: object) -> None:
    if 300 <= response.status_code < 400:
        raise _SentOn


def _said(error: Exception) -> str:
    """The server's own words; they never hold what was sent."""
    return "; ".join(map(str, getattr(error, "errors", None) or ())) or type(error).__name__


def _reason(error: Exception) -> str:
    """The innermost cause: urllib3 wraps it in the whole request."""
    while (inner := error.__cause__ or error.__context__) and isinstance(inner, Exception):
        error = inner
    return str(error) or type(error).__name__
