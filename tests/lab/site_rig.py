"""A site on a lab, as a user runs it: `freehold serve` as a process that can be killed, commands beside it."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from freehold.orchestration.opening import open_vault

FREEHOLD = [sys.executable, "-m", "freehold.interfaces.cli.main"]


class SiteRig:
    """Lab and state below `directory`; `name` keeps its namespaces apart from other labs."""

    def __init__(self, directory: Path, name: str, servers: int = 1) -> None:
        self.lab, self.state, self.name = directory / "lab", directory / "state", name
        self.log = directory / "serve.log"
        self.servers = servers
        self.controller: subprocess.Popen[bytes] | None = None

    def freehold(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [*FREEHOLD, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=self.environment)
        assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"FREEHOLD_STATE": str(self.state)}

    def in_lab(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.freehold("lab", arguments[0], "--dir", str(self.lab), *arguments[1:], check=check)

    def declare(self, *, assigned: Collection[str] = (), by_http: Collection[str] = (), **policy: Any) -> None:
        """The lab's inventory with the assignments of some servers only, and fields of its policy changed. Who does not
        boot `by_http` boots from virtual media, which costs less of a test's time."""
        documents = list(yaml.safe_load_all((self.lab / "inventory.yaml").read_text()))
        for document in documents:
            if document["kind"] == "Server" and document["metadata"]["name"] not in by_http:
                document["spec"]["bootMethod"] = "virtualMedia"
            if document["kind"] == "Policy":
                document["spec"] |= policy
        wanted = [each for each in documents if each["kind"] != "Assignment" or each["spec"]["server"] in assigned]
        path = self.lab / "declared.yaml"
        path.write_text(yaml.safe_dump_all(wanted))
        self.freehold("apply", "-f", str(path))

    def serve(self) -> None:
        """Start the controller, in the background."""
        with self.log.open("ab") as log:
            command = [*FREEHOLD, "serve", "--state", str(self.state), "--lab", str(self.lab)]
            self.controller = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def found_operators(self) -> None:
        """The lab's three people become the site's operators."""
        people = [f"{name}={self.lab}/operators/{name}.key.pub" for name in ("alice", "bob", "carol")]
        self.freehold("operator", "found", *people)

    def sign(self, request: str) -> None:
        """Two of them sign a request."""
        for name in ("alice", "bob"):
            self.freehold("approval", "sign", request, "--key", str(self.lab / "operators" / f"{name}.key"))

    def approve_firmware(self) -> None:
        """Two of them sign what a server measured at staging, once it asks."""
        self.wait("request for approval", lambda status: "two operators to approve" in status.get("waiting_for", ""))
        for known in json.loads(self.freehold("baseline", "list", "-o", "json").stdout)["items"]:
            if known["state"] == "pending":
                for name in ("alice", "bob"):
                    key = str(self.lab / "operators" / f"{name}.key")
                    self.freehold("baseline", "approve", known["id"], "--key", key)

    def attested(self, name: str = "server-1") -> float:
        """When the agent that speaks for the server last proved itself; 0 if none does."""
        agent = self.server(name).get("agent") or {}
        return float(agent.get("attested_at") or 0.0)

    def artifact(self, name: str) -> Path:
        """A boot file of the site, once the controller has made all of them."""
        deadline = time.monotonic() + 600
        while not list(self.state.glob("images/*/content.json")):
            alive = self.controller is not None and self.controller.poll() is None
            waiting = alive and time.monotonic() < deadline
            assert waiting, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.5)
        (found,) = self.state.glob(f"images/*/{name}")
        return found

    def busy_with(self) -> set[str]:
        """The steps that were begun and not ended, as the journal has them."""
        store = sqlite3.connect(f"file:{self.state / 'freehold.db'}?mode=ro", uri=True)
        with contextlib.closing(store):
            return {key for (key,) in store.execute("SELECT key FROM journal WHERE finished IS NULL")}

    def kill_during(self, step: str, after: float = 0.0) -> None:
        """kill -9 so many seconds after the step began; it has not ended then."""
        deadline = time.monotonic() + 240
        while step not in self.busy_with():
            assert time.monotonic() < deadline, f"{step} did not begin"
            time.sleep(0.05)
        time.sleep(after)
        self.kill()
        assert step in self.busy_with(), f"{step} had ended within {after} s"

    def kill(self) -> None:
        """kill -9 of the controller."""
        assert self.controller is not None
        self.controller.send_signal(signal.SIGKILL)
        self.controller.wait()

    def stop(self) -> None:
        if self.controller is not None and self.controller.poll() is None:
            self.controller.terminate()
            try:
                self.controller.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()

    def server(self, name: str = "server-1") -> dict[str, Any]:
        """As `freehold get server NAME -o json` tells it."""
        found: dict[str, Any] = json.loads(self.freehold("get", "server", name, "-o", "json").stdout)
        return found

    def status(self, name: str = "server-1") -> dict[str, Any]:
        return dict(self.server(name)["status"])

    def events(self, *name: str) -> list[str]:
        """Of one server, or of the whole site."""
        rows = json.loads(self.freehold("events", *name, "--limit", "5000", "-o", "json").stdout)["items"]
        return [f"{row['kind']}: {row['message']}" for row in rows]

    def statements(self, kind: str) -> list[dict[str, Any]]:
        """What the evidence log holds of one kind."""
        rows = json.loads(self.freehold("evidence", "log", "--limit", "1000", "-o", "json").stdout)["items"]
        return [row for row in rows if row["kind"] == kind]

    def wait_event(self, *words: str, name: str = "server-1", seconds: float = 420.0) -> str:
        """The first event of the server that has all the words."""

        def told(_: object) -> list[str]:
            return [event for event in self.events(name) if all(word in event for word in words)]

        self.wait(f"event {words}", told, name=name, seconds=seconds)
        return told(None)[0]

    def redfish(self, method: str, path: str, body: Any = None, *, name: str = "server-1") -> Any:
        """A call to a server's BMC from the controller's place, with the credential that is in the vault: somebody
        behind Freehold's back."""
        facts = json.loads((self.lab / "lab.json").read_text())
        address = next(each["bmc_address"] for each in facts["servers"] if each["name"] == name)
        stored = open_vault(self.state).get(f"bmc/{name}/current")
        assert stored is not None
        credential = json.loads(stored)
        secret = f"{credential['username']}:{credential['password']}"
        call = [sys.executable, str(Path(__file__).with_name("redfish_call.py"))]
        said = self.in_lab("exec", "controller", "--", *call, address, secret, method, path, json.dumps(body)).stdout
        return json.loads(said)

    def console(self, name: str = "server-1") -> str:
        """What the machine has said since it was started last."""
        text = (self.lab / "servers" / name / "console.log").read_text(errors="replace")
        return text[max(text.rfind("--- power on"), text.rfind("--- reset"), 0) :]

    def wait(self, what: str, holds: Any, *, name: str = "server-1", seconds: float = 420.0) -> dict[str, Any]:
        """Until `holds(status)`; on timeout the assertion tells what the controller and the console said last."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status(name)
            if holds(status):
                return status
            alive = self.controller is not None and self.controller.poll() is None
            if time.monotonic() > deadline or not alive:
                end = "in time" if alive else "before the controller ended"
                raise AssertionError(f"no {what} {end}\n{self.last_words(name)}")
            time.sleep(1.0)

    def wait_state(self, state: str, *, name: str = "server-1", seconds: float = 420.0) -> dict[str, Any]:
        def there(status: dict[str, Any]) -> bool:
            assert state == "quarantined" or status["state"] != "quarantined", status["reason"]
            return bool(status["state"] == state)

        return self.wait(state, there, name=name, seconds=seconds)

    def last_words(self, name: str) -> str:
        console = self.lab / "servers" / name / "console.log"
        shown = [f"status: {self.status(name)}", *self.events(name)[-15:]]
        for path in (self.log, console):
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            shown += [f"--- {path.name}", *lines[-15:]]
        return "\n".join(shown)


@contextlib.contextmanager
def site_rig(directory: Path, name: str, servers: int = 1, *options: str) -> Iterator[SiteRig]:
    """`options`: more of `freehold lab up`."""
    rig = SiteRig(directory, name, servers)
    try:
        rig.in_lab("up", "--name", name, "--servers", str(servers), *options)
        yield rig
    finally:
        rig.stop()
        rig.in_lab("down", "--name", name, check=False)
