"""The vault in a real OpenBao server, a key in its transit engine: sealed, killed and restarted in mid-operation."""

import json
import shutil
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from custody_support import PEOPLE, identities
from hvac.exceptions import InvalidPath
from openbao_support import POLICY, Authority, OpenBaoServer

from freehold.root_of_trust import site_vault
from freehold.root_of_trust.custody import KvPlace, Server
from freehold.root_of_trust.kek import CustodyUnavailable, MemoryKek
from freehold.root_of_trust.kek.transit import TransitKek
from freehold.root_of_trust.keys import SiteKeys
from freehold.root_of_trust.openbao import OpenBao, OpenBaoDenied, OpenBaoSealed, OpenBaoUnreachable
from freehold.root_of_trust.vault import (
    Credential,
    CredentialSlots,
    DestroyedKey,
    EmbeddedVault,
    TamperedRecord,
    VaultError,
)
from freehold.root_of_trust.vault.openbao import OpenBaoVault

pytestmark = [pytest.mark.host, pytest.mark.slow]
SECRET = b"correct horse battery staple"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBaoServer]:
    directory = tmp_path_factory.mktemp("openbao")
    made = OpenBaoServer(directory / "server", Authority(directory / "ca"))
    try:
        made.start()
        made.set_up()
        yield made
    finally:
        made.kill()


@pytest.fixture
def server(running: OpenBaoServer) -> Iterator[OpenBaoServer]:
    """Up, unsealed and empty."""
    yield running
    running.kill()
    running.start()


@pytest.fixture
def bao(running: OpenBaoServer) -> OpenBao:
    return connect(running)


@pytest.fixture
def vault(bao: OpenBao, running: OpenBaoServer) -> OpenBaoVault:
    made = OpenBaoVault(bao, "freehold")
    for path in made.paths():
        made.destroy(path)
    return made


def connect(server: OpenBaoServer, secret_id: str | None = None) -> OpenBao:
    known = secret_id or server.new_secret_id()
    return OpenBao(server.address, str(server.authority.file), server.role_id, lambda: known)


# ---- KV


def test_secrets_are_put_read_listed_and_replaced(vault: OpenBaoVault, server: OpenBaoServer) -> None:
    assert vault.get("bmc/r1/current") is None
    vault.put("bmc/r1/current", b"first")
    vault.put("bmc/r1/current", SECRET)
    vault.put("bmc/r1", b"")
    vault.put("bmc/r10", bytes(range(256)))
    assert vault.get("bmc/r1/current") == SECRET
    assert vault.get("bmc/r1") == b""
    assert vault.get("bmc/r10") == bytes(range(256))
    assert vault.paths("bmc/r1") == ["bmc/r1", "bmc/r1/current"]
    assert vault.paths("bmc/r") == []
    versions = server.root().secrets.kv.v2.read_secret_metadata("bmc/r1/current", mount_point="freehold")
    states = [each["destroyed"] for each in versions["data"]["versions"].values()]
    assert states[-1] is False
    assert all(states[:-1])  # the secret of before is gone, not only superseded


def test_a_destruction_is_reported_again_until_its_path_is_reused(vault: OpenBaoVault) -> None:
    vault.put("tenants/a/disk", SECRET)
    vault.put("tenants/b/disk", SECRET)
    (key,) = vault.destroy("tenants/a")
    assert isinstance(key, DestroyedKey)
    assert (key.path, len(key.key_id)) == ("tenants/a/disk", 64)
    assert vault.get("tenants/a/disk") is None
    assert vault.paths("tenants") == ["tenants/b/disk"]
    assert vault.destroy("tenants/a") == [key]
    vault.put("tenants/a/disk", b"new life")
    assert vault.get("tenants/a/disk") == b"new life"
    assert vault.destroy("tenants/a")[0].version > key.version
    assert vault.destroy("tenants/nobody") == []


def test_a_credential_goes_through_its_phases(vault: OpenBaoVault) -> None:
    slots = CredentialSlots(vault, "bmc/r2")
    slots.stage("freehold", "one")
    slots.commit()
    slots.stage("freehold", "two", {"tries": 1})
    assert slots.current() == Credential("freehold", "one")
    assert slots.pending() == Credential("freehold", "two", {"tries": 1})


def test_threads_and_sessions_do_not_lose_each_others_changes(vault: OpenBaoVault, running: OpenBaoServer) -> None:
    def count(own: OpenBaoVault) -> None:
        for _ in range(10):
            own.update("counter", lambda old: str(int(old or b"0") + 1).encode())

    threads = [
        threading.Thread(target=count, args=(each,))
        for each in (vault, vault, OpenBaoVault(connect(running), "freehold"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vault.get("counter") == b"30"


def test_the_audit_names_entries_that_are_not_ours(vault: OpenBaoVault, running: OpenBaoServer) -> None:
    vault.put("bmc/r1/current", SECRET)
    running.root().secrets.kv.v2.create_or_update_secret("bmc/r1/by-hand", {"password": "x"}, mount_point="freehold")
    reports = {report.path: report for report in vault.audit()}
    assert reports["bmc/r1/current"].problem is None
    assert abs((reports["bmc/r1/current"].at or 0) - time.time()) < 60
    assert "was not written by Freehold" in (reports["bmc/r1/by-hand"].problem or "")
    with pytest.raises(TamperedRecord, match="the mount belongs to the vault alone"):
        vault.get("bmc/r1/by-hand")


# ---- what is not there, and what only seems so


def test_what_was_never_stored_is_absent_on_the_real_server(vault: OpenBaoVault) -> None:
    assert vault.get("bmc/nobody/current") is None


def test_an_engine_that_is_not_there_is_not_an_empty_one(bao: OpenBao, running: OpenBaoServer) -> None:
    policy = POLICY + 'path "elsewhere/*" { capabilities = ["read", "list"] }\n'
    running.root().sys.create_or_update_policy("freehold", policy)
    try:
        with pytest.raises(CustodyUnavailable, match=r"cannot read bmc/r1/current: no handler for route"):
            OpenBaoVault(bao, "elsewhere").get("bmc/r1/current")
    finally:
        running.root().sys.create_or_update_policy("freehold", POLICY)


VERSION = {"created_time": "2026-05-01T00:00:00Z", "deletion_time": "", "destroyed": False}
KNOWN = {"current_version": 3, "versions": {"3": VERSION}}


class Answers:
    """In place of a server that is just coming up, which a test cannot hold still: the shapes of its answers."""

    address = "https://bao"

    def __init__(
        self, health: int, metadata: object, errors: tuple[str, ...] = (), destroyed: object | None = None
    ) -> None:
        def missing(*_: object, **__: object) -> object:
            raise InvalidPath(errors=list(errors), json={"errors": list(errors), "data": destroyed})

        def versions(*_: object, **__: object) -> object:
            return {"data": metadata} if metadata is not None else missing()

        v2 = SimpleNamespace(read_secret_version=missing, read_secret_metadata=versions)
        sys_ = SimpleNamespace(read_health_status=lambda **_: SimpleNamespace(status_code=health))
        self.client = SimpleNamespace(secrets=SimpleNamespace(kv=SimpleNamespace(v2=v2)), sys=sys_)

    def call(self, _what: str, work: Callable[[object], object]) -> object:
        return work(self.client)


@pytest.mark.parametrize(
    ("health", "metadata", "says"),
    [
        (200, KNOWN, "says that there is no bmc/r1/current, and knows of its version 3"),
        (429, None, "is a standby node, so its word"),
        (429, KNOWN, "is a standby node"),
        (501, None, "is not initialized"),
        (503, None, "is sealed"),
        (500, None, "not ready \\(health 500\\)"),
    ],
)
def test_absent_is_not_believed_of_a_server_that_may_not_know(health: int, metadata: object, says: str) -> None:
    """Else the product believes that a BMC's password is unknown."""
    vault = OpenBaoVault(Answers(health, metadata), "freehold")  # type: ignore[arg-type]
    with pytest.raises(CustodyUnavailable, match=says) as raised:
        vault.get("bmc/r1/current")
    assert "do this again" in (raised.value.remedy or "")


DESTROYED = {"data": None, "metadata": {"version": 2, "destroyed": True}}


@pytest.mark.parametrize(
    ("health", "says"),
    [(200, "says that there is no bmc/r1/current, and knows of its version 3"), (429, "is a standby")],
)
def test_a_version_that_is_gone_is_not_believed_to_be_the_last_one(health: int, says: str) -> None:
    """A path that was used again after its destruction, and a server that does not know of that yet."""
    vault = OpenBaoVault(Answers(health, KNOWN, destroyed=DESTROYED), "freehold")  # type: ignore[arg-type]
    with pytest.raises(CustodyUnavailable, match=says):
        vault.get("bmc/r1/current")


def test_a_version_that_is_gone_is_believed_of_the_active_node() -> None:
    known = {"current_version": 2, "versions": {"2": VERSION | {"destroyed": True}}}
    answers = Answers(200, known, destroyed=DESTROYED)
    assert OpenBaoVault(answers, "freehold").get("bmc/r1/current") is None  # type: ignore[arg-type]


@pytest.mark.parametrize("metadata", [None, {"current_version": 0, "versions": {}}])
def test_absent_is_believed_of_the_active_node_that_knows_of_no_version(metadata: object) -> None:
    assert OpenBaoVault(Answers(200, metadata), "freehold").get("bmc/r1/current") is None  # type: ignore[arg-type]


def test_a_404_with_a_reason_is_no_absence() -> None:
    answers = Answers(200, None, ("no handler for route freehold/data/x",))
    with pytest.raises(InvalidPath):  # `OpenBao.call` turns it into CustodyUnavailable
        OpenBaoVault(answers, "freehold").get("x")  # type: ignore[arg-type]


# ---- sealed, killed, restarted


def test_a_sealed_server_is_named_and_serves_again_after_it(vault: OpenBaoVault, server: OpenBaoServer) -> None:
    vault.put("bmc/r1/current", SECRET)
    server.seal()
    calls: list[Callable[[], object]] = [
        lambda: vault.get("bmc/r1/current"),
        lambda: vault.put("bmc/r1/current", b"lost?"),
        vault.paths,
        vault.audit,
        lambda: vault.destroy("bmc/r1"),
        lambda: connect(server, "any").call("read", lambda client: client.sys.list_policies()),
    ]
    for call in calls:
        with pytest.raises(OpenBaoSealed, match=r"is sealed, so it cannot[\s\S]*unseal it"):
            call()
    server.kill()
    server.start()
    assert vault.get("bmc/r1/current") == SECRET


def test_a_server_that_is_killed_and_restarted_in_mid_operation_loses_no_secret_that_was_stored(
    vault: OpenBaoVault, server: OpenBaoServer
) -> None:
    """A writer repeats each call until it succeeds, as the engine does, while the server is killed four times."""
    done, failures, found, stop = [0], [], [], threading.Event()

    def write() -> None:
        number = 1

        def count(old: bytes | None) -> bytes:
            found.append(old)
            return str(number).encode()

        while not stop.is_set():
            try:
                vault.update("counter", count)
            except CustodyUnavailable as error:
                failures.append(error)
                time.sleep(0.02)
            else:
                done.append(number)
                number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(4):
            reached = done[-1] + 5
            until = time.monotonic() + 30
            while done[-1] < reached and time.monotonic() < until:
                time.sleep(0.005)
            assert done[-1] >= reached
            server.kill()
            stored = done[-1]
            server.start()
            assert int(vault.get("counter") or b"0") >= stored
    finally:
        stop.set()
        writer.join()
    wanted = str(done[-1]).encode(), str(done[-1] + 1).encode()
    assert vault.get("counter") in wanted, vault._entry("counter")
    assert done == list(range(len(done)))
    assert None not in found[1:]  # a stored secret is never said to be absent, not even for a moment
    assert failures
    assert all(isinstance(error, OpenBaoUnreachable | OpenBaoSealed) for error in failures)
    assert all(server.address in str(error) for error in failures)


def test_a_server_that_is_not_there_is_named(vault: OpenBaoVault, server: OpenBaoServer) -> None:
    server.kill()
    with pytest.raises(OpenBaoUnreachable, match=r"cannot be reached to read bmc[\s\S]*do this again"):
        vault.get("bmc/r1/current")


# ---- who we talk to, and as whom


def test_a_certificate_of_another_ca_is_refused_before_anything_is_sent(
    running: OpenBaoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the environment vouches for it."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(running.authority.file))
    other = Authority(tmp_path / "other")
    asked = []
    bao = OpenBao(running.address, str(other.file), running.role_id, lambda: asked.append(1) or "x")  # type: ignore[func-returns-value]
    with pytest.raises(OpenBaoUnreachable, match=r"certificate verify failed[\s\S]*never turn the check off"):
        bao.call("read", lambda client: client.sys.list_policies())
    with pytest.raises(CustodyUnavailable, match="is not HTTPS"):
        OpenBao("http://127.0.0.1:8200", str(other.file), "", lambda: "")


def test_nothing_of_the_environment_is_used(running: OpenBaoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("VAULT_TOKEN", running.root_token)
    monkeypatch.setenv("VAULT_ADDR", "https://127.0.0.1:9")
    bao = connect(running)
    assert OpenBaoVault(bao, "freehold").get("nothing") is None
    with pytest.raises(OpenBaoDenied, match=r"does not allow us to list policies[\s\S]*key-custody"):
        bao.call("list policies", lambda client: client.sys.list_policies())


def test_a_token_that_ran_out_is_renewed_by_a_new_log_in(vault: OpenBaoVault, bao: OpenBao) -> None:
    vault.put("bmc/r1/current", SECRET)
    first = bao._client.token
    bao.call("revoke", lambda client: client.auth.token.revoke_self())
    assert vault.get("bmc/r1/current") == SECRET
    assert bao._client.token != first


def test_a_wrong_secret_id_is_named_and_not_shown(running: OpenBaoServer) -> None:
    bao = connect(running, "5ec4e7-5ec4e7")
    with pytest.raises(OpenBaoDenied, match=rf"refuses the AppRole {running.role_id}[\s\S]*secret-id") as refused:
        OpenBaoVault(bao, "freehold").get("x")
    assert "5ec4e7" not in str(refused.value) + repr(refused.value) + repr(bao)


def test_the_policy_allows_no_more_than_the_documentation_says(bao: OpenBao) -> None:
    page = (Path(__file__).parents[2] / "docs" / "key-custody.md").read_text()
    assert all(line in page for line in POLICY.splitlines())
    for work in (
        lambda client: client.secrets.transit.create_key("another"),
        lambda client: client.secrets.transit.encrypt_data("another", plaintext=b64encode(b"x").decode()),
        lambda client: client.secrets.transit.delete_key("freehold"),
        lambda client: client.secrets.kv.v2.delete_metadata_and_all_versions("x", mount_point="freehold"),
        lambda client: client.sys.seal(),
    ):
        with pytest.raises(OpenBaoDenied):
            bao.call("do more", work)


# ---- as a site has it


@pytest.mark.parametrize("kind", ["openbao", "openbao-kv"])
def test_a_site_keeps_its_keys_there_and_says_when_it_is_sealed(
    kind: str, vault: OpenBaoVault, server: OpenBaoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`freehold vault init`, the site's own keys, `status` while OpenBao is sealed, and all of it after a restart."""
    state, secret_id = tmp_path / "state", tmp_path / "secret-id"
    secret_id.write_text(value := server.new_secret_id())
    secret_id.chmod(0o600)
    monkeypatch.setenv("FREEHOLD_OPENBAO_SECRET_ID_FILE", str(secret_id))
    monkeypatch.setenv("FREEHOLD_STATE", str(state))
    said = ""

    def freehold(*words: str) -> subprocess.CompletedProcess[str]:
        nonlocal said
        command = [sys.executable, "-m", "freehold.interfaces.cli.main", "vault", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        said += " ".join(command) + done.stdout + done.stderr
        return done

    where = ["--address", server.address, "--ca", str(server.authority.file), "--role-id", server.role_id]
    people = [word for name, recipient in PEOPLE.items() for word in ("--recovery", f"{name}={recipient}")]
    more = people if kind == "openbao" else ["--mount", "freehold"]
    made = freehold("init", "--kek", kind, *where, *more)
    assert made.returncode == 0, made
    keys = SiteKeys.create(state, site_vault.open_vault(state), "lab", ["172.30.2.2"], bmc_networks=["172.30.1.0/24"])
    status = json.loads(freehold("status", "-o", "json").stdout)
    assert (status["kind"], status["opens"], status["secrets"]) == (kind, True, 10)
    audit = freehold("audit", "-o", "json")
    assert (audit.returncode, len(json.loads(audit.stdout)["records"])) == (0, 10)
    again = freehold("init", "--kek", kind, *where, *more)
    assert "has a vault already" in again.stderr
    server.seal()
    sealed = freehold("status")
    assert sealed.returncode == 3
    assert f"OpenBao at {server.address} is sealed" in sealed.stderr
    assert "unseal it" in sealed.stderr
    server.kill()
    server.start()
    reopened = SiteKeys.load(state, site_vault.open_vault(state))
    assert reopened.public_files() == keys.public_files()
    assert value not in said
    for file in state.rglob("*"):
        assert not file.is_file() or b"PRIVATE KEY" not in file.read_bytes()


def test_a_mount_that_holds_secrets_already_is_not_taken_for_a_new_site(
    vault: OpenBaoVault, running: OpenBaoServer, tmp_path: Path
) -> None:
    vault.put("bmc/r1/current", SECRET)
    place = KvPlace(Server(running.address, str(running.authority.file), running.role_id), "freehold")
    with pytest.raises(VaultError, match="holds 1 secrets already"):
        site_vault.found_kv(tmp_path, place, running.new_secret_id)
    assert not (tmp_path / "custody.json").exists()


# ---- transit


def test_a_transit_key_wraps_in_its_context_only(bao: OpenBao) -> None:
    kek = TransitKek.open(bao, "transit", "freehold")
    key, context = bytes(range(32)), b"freehold-vault/2\0bmc/r1/current\0001\0002"
    wrapped = kek.wrap(key, context)
    assert wrapped.startswith(b"vault:v1:")
    assert kek.unwrap(wrapped, context) == key
    for bad, other in [
        (wrapped, context[:-1]),
        (wrapped[:-4], context),
        (b"", context),
        (b"\xff", context),
        (MemoryKek(bytes(32)).wrap(key, context), context),
    ]:
        with pytest.raises(ValueError, match=r"does not unwrap|ascii"):
            kek.unwrap(bad, other)


def test_a_vault_under_transit_survives_seal_and_restart_and_is_recovered_without_it(
    bao: OpenBao, server: OpenBaoServer, tmp_path: Path
) -> None:
    kek = TransitKek.open(bao, "transit", "freehold")
    vault = EmbeddedVault.create(tmp_path / "vault", kek, PEOPLE)
    vault.put("bmc/r1/current", SECRET)
    before = {path: path.read_bytes() for path in vault.directory.rglob("*@*")}
    server.seal()
    for call in (lambda: vault.get("bmc/r1/current"), lambda: vault.put("bmc/r1/current", b"new"), vault.audit):
        with pytest.raises(OpenBaoSealed, match="is sealed"):
            call()
    assert {path: path.read_bytes() for path in vault.directory.rglob("*@*")} == before
    copy = shutil.copytree(vault.directory, tmp_path / "copy")
    recovered = EmbeddedVault.recover(copy, identities("alice", "bob"))  # while OpenBao is sealed
    assert recovered.get("bmc/r1/current") == SECRET
    server.kill()
    server.start()
    again = EmbeddedVault.open(vault.directory, TransitKek.open(bao, "transit", "freehold", kek.key_id))
    assert again.get("bmc/r1/current") == SECRET
    server.root().secrets.transit.rotate_key("freehold")  # a new version wraps, the old one still unwraps
    again.put("bmc/r1/current", b"new")
    assert again.get("bmc/r1/current") == b"new"


def test_a_restart_in_the_middle_of_a_rekey_leaves_the_vault_with_its_old_key(
    bao: OpenBao, server: OpenBaoServer, tmp_path: Path
) -> None:
    old = MemoryKek(bytes(32))
    vault = EmbeddedVault.create(tmp_path / "vault", old, PEOPLE)
    for number in range(30):
        vault.put(f"bmc/r{number}/current", SECRET)
    kek = TransitKek.open(bao, "transit", "freehold")
    real, calls = kek.wrap, []

    def wrap(key: bytes, context: bytes) -> bytes:
        calls.append(context)
        if len(calls) == 12:
            server.kill()
        return real(key, context)

    kek.wrap = wrap  # type: ignore[method-assign]
    with pytest.raises(OpenBaoUnreachable):
        vault.rekey(kek)
    assert EmbeddedVault.open(vault.directory, old).get("bmc/r29/current") == SECRET
    server.start()
    kek.wrap = real  # type: ignore[method-assign]
    vault.rekey(kek)
    assert EmbeddedVault.open(vault.directory, kek).get("bmc/r29/current") == SECRET
    assert len(list(vault.directory.glob("records*"))) == 1


def test_transit_keys_that_could_be_read_or_are_missing_are_refused(bao: OpenBao, running: OpenBaoServer) -> None:
    root = running.root()
    policy = 'path "transit/*" { capabilities = ["read", "update"] }\n'
    root.sys.create_or_update_policy("freehold", POLICY + policy)
    root.secrets.transit.create_key("loose", exportable=True)
    with pytest.raises(CustodyUnavailable, match=r"transit/loose .* is not fit: aes256-gcm96, exportable"):
        TransitKek.open(bao, "transit", "loose")
    with pytest.raises(CustodyUnavailable, match=r"has no transit key transit/missing[\s\S]*bao write -f"):
        TransitKek.open(bao, "transit", "missing")
    # A key that is deleted under a running vault is no tampered record.
    root.secrets.transit.create_key("doomed")
    kek = TransitKek.open(bao, "transit", "doomed")
    wrapped = kek.wrap(bytes(32), b"context")
    root.secrets.transit.update_key_configuration("doomed", deletion_allowed=True)
    root.secrets.transit.delete_key("doomed")
    with pytest.raises(CustodyUnavailable):
        kek.unwrap(wrapped, b"context")
    root.sys.create_or_update_policy("freehold", POLICY)


def test_no_secret_is_in_openbaos_files_or_logs(vault: OpenBaoVault, server: OpenBaoServer) -> None:
    vault.put("bmc/r1/current", SECRET)
    assert vault.get("bmc/r1/current") == SECRET
    server.kill()
    files = [path for path in server.directory.rglob("*") if path.is_file()]
    assert any(path.name == "audit.log" and b"bmc/r1/current" in path.read_bytes() for path in files)
    for path in files:
        data = path.read_bytes()
        assert SECRET not in data
        assert b64encode(SECRET) not in data
