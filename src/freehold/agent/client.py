"""The agent's side of the protocol (docs/architecture.md): say who, prove it, carry out orders until told to leave.

Every failure is one line on the console and a retry with back-off; nothing but an order to leave ends the agent.
"""

import base64
import json
import os
import time

from freehold.agent import identity
from freehold.agent.errors import AgentError
from freehold.agent.orders import Context, execute
from freehold.agent.session_key import SessionKey
from freehold.agent.tpm_codes import TpmError
from freehold.agent.wire import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

PROTOCOL = 2
WAIT_S = 20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
NO_TPM_AFTER = 3  # tries in a row: one that is busy right after the boot is none that is missing
PROGRESS_EVERY_S = 1.0
RENEW_AFTER = 0.9  # of a certificate's life
# Failures in a row after which it may be our certificate that is not taken: with TLS 1.3 a server may just hang up.
MAY_BE_US = 3
AFTERWARDS = ("reboot", "poweroff")


class Refused(AgentError):
    """The controller answered with an error of its own; `status` is its HTTP status."""

    def __init__(self, status: int, what: str, remedy: str) -> None:
        super().__init__(f"the controller answers {status}: {what}", remedy=remedy)
        self.status = status


class Unattested(Exception):
    """The controller does not know our certificate (it restarted, or the session ended), or it ends: attest again."""


def say(line: str) -> None:
    """One line on the console."""
    print(f"freehold-agent: {' '.join(line.split())}", flush=True)


class Controller:
    """JSON calls over one verified TLS connection: as a stranger, until an attestation earned us a certificate.
    `trust` makes a fresh context that verifies the controller."""

    def __init__(self, url: str, trust: "Callable[[], ssl.SSLContext]") -> None:
        self._url, self._trust = url, trust
        self._connection = Connection(url, trust())
        self._renew_at = self._ends_at = 0.0
        self._failures = 0

    def as_stranger(self) -> None:
        """Show no certificate from the next call on."""
        self._connection.close()
        self._connection = Connection(self._url, self._trust())
        self._renew_at = self._ends_at = 0.0

    def enter(self, certificate_pem: str, key: SessionKey, valid_for: float) -> None:
        """Show this certificate, which is good for so many seconds, from the next call on."""
        context = self._trust()
        memory = os.memfd_create("session", os.MFD_CLOEXEC)  # load_cert_chain wants a file; a disk gets none
        try:
            os.write(memory, key.private_pem + certificate_pem.encode())
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
        self._connection.close()
        self._connection = Connection(self._url, context)
        now = time.monotonic()
        self._renew_at, self._ends_at = now + RENEW_AFTER * valid_for, now + valid_for

    def require_session(self) -> None:
        """Unattested, if the certificate is so near its end that it is time for the next one, or there is none."""
        if time.monotonic() >= self._renew_at:
            raise Unattested

    def call(
        self, method: str, target: str, body: "dict[str, Any] | None" = None, timeout: float = 30.0
    ) -> "dict[str, Any]":
        """The answer's object, {} for 204. OSError: the network's failure; Refused, Unattested: the controller's."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        data = json.dumps(body).encode() if body is not None else b""
        try:
            response = self._connection.request(method, target, headers=headers, body=data, timeout=timeout)
            text = response.read()
        except OSError as failure:
            self._connection.close()
            self._failures += 1
            if self._ends_at and (self._failures >= MAY_BE_US or time.monotonic() >= self._ends_at):
                raise Unattested from failure
            raise
        self._failures = 0
        if response.headers.get("connection", "").lower() == "close":
            self._connection.close()
        if response.status == 401:
            raise Unattested
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = {}
        if response.status >= 300 or not isinstance(answer, dict):
            error = answer.get("error", {}) if isinstance(answer, dict) else {}
            what, remedy = error.get("what") or "no reason given", error.get("remedy") or "look at the controller's log"
            raise Refused(response.status, str(what), str(remedy))
        return answer

    def certificate(self) -> bytes:
        """DER of the certificate seen on the connection that the next call uses."""
        return self._connection.peer_certificate()

    def close(self) -> None:
        """Drop the connection."""
        self._connection.close()


class Agent:
    """One run of the agent. `root` and `leave` are arguments so that a test can stand in for the machine."""

    def __init__(
        self,
        controller: Controller,
        mode: str,
        *,
        root: str = "/",
        leave: "Callable[[str, str], None] | None" = None,
        open_tpm: "Callable[[str], Any]" = identity.open_tpm,
        pause: "Callable[[float], None]" = time.sleep,
    ) -> None:
        self.controller, self.mode, self.root = controller, mode, root
        self._leave, self._open_tpm, self._pause = leave, open_tpm, pause
        self._tpm_failures = 0
        self._ticket: bytes | None = None  # found once: its medium may be gone when it is needed again
        self._answers: dict[str, dict[str, Any]] = {}  # by order id: a repeated delivery gets the same answer
        self._last_progress, self._last_renewal = 0.0, -LONGEST_PAUSE_S

    def run(self) -> None:
        """Until an order to leave was carried out."""
        while True:
            try:
                self.persist("attestation", self.attest)
                if self.mode == "os":
                    self.persist("ready", self.ready)
                while not self.serve_one():
                    pass
                return
            except Unattested:
                say("it is time for a new attestation")

    def persist(self, what: str, action: "Callable[[], Any]") -> "Any":
        """Repeat until it works, with back-off. Unattested goes through."""
        wait = FIRST_PAUSE_S
        while True:
            try:
                return action()
            except (AgentError, TpmError, OSError) as error:
                say(f"{what} failed: {error}; again in {wait:.0f} s")
            except (KeyError, TypeError, ValueError) as error:
                say(f"{what} failed: the controller's answer is malformed ({error!r}); again in {wait:.0f} s")
            self.controller.close()
            self._pause(wait)
            wait = min(wait * 2, LONGEST_PAUSE_S)

    def attest(self) -> None:
        """Hello, activate the credential, quote, attest, with a fresh key; speaks under the certificate that this earns
        from then on. Without a TPM that the controller takes, the ticket of this boot is shown, if it was given one;
        else the controller is told so."""
        from freehold.agent import inventory
        from freehold.agent.blockdev import read_text

        self.controller.as_stranger()
        hello: dict[str, Any] = {
            "protocol": PROTOCOL, "mode": self.mode,
            "boot_id": read_text(f"{self.root}/proc/sys/kernel/random/boot_id"),
            "smbios": inventory.identity(self.root), "macs": inventory.macs(self.root),
            "ek_public": None, "ek_certificate": None, "ak_public": None,
        }  # fmt: skip
        try:
            tpm = self._open_tpm(self.root)
        except TpmError:
            if self._enter(hello):
                return
            self._tpm_failures += 1
            if self._tpm_failures >= NO_TPM_AFTER:
                self.controller.call("POST", "/agent/v1/hello", hello)
            raise
        self._tpm_failures = 0
        with tpm:
            ek, ak, certificate = tpm.create_ek(), tpm.create_ak(), tpm.ek_certificate()
            hello |= {"ek_public": _b64(ek.public), "ak_public": _b64(ak.public)}
            hello["ek_certificate"] = _b64(certificate) if certificate else None
            seen = self.controller.certificate()
            try:
                challenge = self.controller.call("POST", "/agent/v1/hello", hello)
            except Refused as refusal:
                if refusal.status != 403 or not self._enter(hello):
                    raise
                return
            session, nonce = str(challenge["session"]), base64.b64decode(challenge["nonce"])
            blob, encrypted = (base64.b64decode(challenge[name]) for name in ("credential_blob", "encrypted_secret"))
            secret = tpm.activate_credential(ak, ek, blob, encrypted)
            key = SessionKey()
            bound = identity.qualifying_data(nonce, session, seen, key.public)
            quote, signature = tpm.quote(ak, bound, challenge["pcrs"])
        if self.controller.certificate() != seen:
            raise AgentError("the controller's certificate has changed", remedy="check who has its address")
        evidence = {"session": session, "secret": _b64(secret), "quote": _b64(quote), "signature": _b64(signature)}
        evidence |= {"event_log": _b64(identity.event_log(self.root)), "public_key": _b64(key.public)}
        answer = self.controller.call("POST", "/agent/v1/attest", evidence, timeout=60)
        self.controller.enter(str(answer["certificate"]), key, float(answer["valid_for"]))
        say("attested: the controller accepts this server")

    def _enter(self, hello: "dict[str, Any]") -> bool:
        """Show the ticket of this boot, and speak under the certificate that it earns; False: there is no ticket."""
        from freehold.agent import ticket

        self._ticket = self._ticket or ticket.find(self.mode, self.root)
        if self._ticket is None:
            return False
        key = SessionKey()
        entry = {name: hello[name] for name in ("protocol", "mode", "boot_id", "smbios", "macs")}
        entry |= {"ticket": _b64(self._ticket), "public_key": _b64(key.public)}
        answer = self.controller.call("POST", "/agent/v1/enter", entry)
        self.controller.enter(str(answer["certificate"]), key, float(answer["valid_for"]))
        say("let in by ticket: this server goes without a TPM")
        return True

    def ready(self) -> None:
        """Tell the controller that the installed OS is up."""
        from freehold.agent.ready import state

        self.controller.call("POST", "/agent/v1/ready", state(self.root))
        say("reported ready")

    def serve_one(self) -> bool:
        """Wait for one order, carry it out, deliver the result. True after an order to leave."""
        self.controller.require_session()
        answer = self.persist(
            "waiting for orders",
            lambda: self.controller.call("GET", f"/agent/v1/orders?wait={WAIT_S}", timeout=WAIT_S + 15),
        )
        order = answer.get("order")
        if not order:
            return False
        number, kind = str(order["id"]), str(order["kind"])
        if number not in self._answers:
            say(f"order {number}: {kind}")
            context = Context(self.root, lambda done, total, phase: self._progress(number, done, total, phase))
            self._answers[number] = execute(kind, order.get("args") or {}, context)
        result = self._answers[number]
        say(f"order {number}: {kind} {'done' if result['ok'] else 'failed: ' + result['error']['what']}")
        self.persist(f"result of order {number}", lambda: self._deliver(number, result))
        if kind in AFTERWARDS and result["ok"]:
            self.controller.close()
            if self._leave is None:
                from freehold.agent.power import leave

                self._leave = leave
            self._leave(kind, self.mode)
            return True
        return False

    def _deliver(self, number: str, result: "dict[str, Any]") -> None:
        try:
            self.controller.call("POST", f"/agent/v1/orders/{number}/result", result)
        except Refused as error:
            if error.status not in (404, 409):  # the order is gone or has its result: nobody waits for this one
                raise
            say(str(error))

    def _progress(self, number: str, done: int, total: int, phase: str) -> None:
        """At most one report a second; a lost one does not matter, so it neither retries nor fails the order. An order
        may outlast a certificate, and who is silent is taken for lost: so the next one is fetched here too."""
        now = time.monotonic()
        if now - self._last_progress < PROGRESS_EVERY_S and done < total:
            return
        self._last_progress = now
        body = {"done": done, "total": total, "unit": "bytes", "phase": phase}
        try:
            self.controller.require_session()
            self.controller.call("POST", f"/agent/v1/orders/{number}/progress", body, timeout=5)
        except (OSError, Refused) as error:
            say(f"progress of order {number} not reported: {error}")
        except Unattested:
            self._renew(now)

    def _renew(self, now: float) -> None:
        """Attest in the middle of an order, if that was not tried just now."""
        if now - self._last_renewal < LONGEST_PAUSE_S:
            return
        self._last_renewal = now
        try:
            self.attest()
        except (AgentError, TpmError, OSError, KeyError, TypeError, ValueError, Unattested) as error:
            say(f"attestation failed: {error!r}; the order goes on")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
