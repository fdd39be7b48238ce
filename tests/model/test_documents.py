"""Bad input: every test reads the message that a person would see."""

from pathlib import Path

import pytest

from freehold.model.documents import DocumentError, load_documents, resource_from, validate_set
from freehold.model.resources import DriftKind, Reaction, Resource, ServerSpec, parse_duration

RACK = (Path(__file__).parent / "rack.yaml").read_text()


def rack(*changes: tuple[str, str]) -> str:
    text = RACK
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    return text


def refused(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        validate_set(load_documents(text, "rack.yaml"))
    return str(caught.value)


def line_of(text: str, needle: str, nth: int = 0) -> int:
    return [number for number, line in enumerate(text.splitlines(), 1) if needle in line][nth]


def named(resources: list[Resource], kind: str) -> Resource:
    return next(each for each in resources if each.kind == kind)


def test_a_whole_rack_is_read() -> None:
    resources = load_documents(RACK, "rack.yaml")
    validate_set(resources)
    server = named(resources, "Server").spec
    assert isinstance(server, ServerSpec)
    assert server.nics[0].mac == "52:54:00:12:34:10"
    assert server.boot_method == "http"
    policy = named(resources, "Policy").spec
    assert policy.reaction(DriftKind.BMC_ACCOUNT) is Reaction.REMEDIATE
    assert policy.reaction(DriftKind.SECURE_BOOT) is Reaction.QUARANTINE


def test_documents_survive_a_round_trip() -> None:
    for resource in load_documents(RACK, "rack.yaml"):
        again = resource_from(resource.to_document(reveal=True), origin="store")
        assert again.same_as(resource)


def test_a_password_is_not_shown() -> None:
    server = named(load_documents(RACK, "rack.yaml"), "Server")
    assert "factory-word" not in repr(server)
    assert "factory-word" not in str(server.to_document())
    assert "factory-word" in str(server.to_document(reveal=True))


def test_unknown_field_names_file_line_path_and_the_closest_name() -> None:
    text = rack(("bootMethod: http", "bootMetod: http"))
    at = line_of(text, "bootMetod")
    assert refused(text) == f"rack.yaml:{at}: spec.bootMetod: unknown field; did you mean 'bootMethod'?"


def test_unknown_field_deep_inside() -> None:
    text = rack(("- mac: ", "- Mac: "))
    at = line_of(text, "- Mac")
    assert refused(text) == f"rack.yaml:{at}: spec.nics[0].Mac: unknown field; did you mean 'mac'?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("address: 172.30.1.11", "address: 17"), "spec.bmc.address: must be text, found a whole number"),
        (("version: '12.11'", "version: 12.11"), "must be text, found a number; write it in quotes"),
        (("bootMethod: http", "bootMethod: floppy"), "'floppy' is not allowed here; one of http, virtualMedia"),
        (("bmc-account: remediate", "bmc-account: forgive"), "'forgive' is not allowed here"),
        (("kind: Image", "kind: Imgae"), "kind: unknown kind 'Imgae'; did you mean 'Image'?"),
        (("apiVersion: freehold/v1", "apiVersion: v2"), "apiVersion: must be freehold/v1, found 'v2'"),
        (("  name: server-1", "  nam: server-1"), "metadata.name is missing or not text"),
        (("network: provisioning", "netwrk: provisioning"), "did you mean 'network'?"),
        (("prefix: 172.30.1.0/24", "gateway: 172.30.1.1"), "spec.prefix: is missing"),
    ],
)
def test_wrong_shapes(change: tuple[str, str], message: str) -> None:
    assert message in refused(rack(change))


def test_wrong_type_names_its_line() -> None:
    text = rack(("bootMethod: http", "bootMethod: [http]"))
    assert refused(text).startswith(f"rack.yaml:{line_of(text, 'bootMethod: [')}: spec.bootMethod: must be text")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: server-2", "name: server-1"), "metadata.name: Server 'server-1' is declared twice (first in rack"),
        (("name: server-2", "name: Server_2"), "'Server_2' is not a name: use a-z, 0-9 and -"),
        (("image: debian", "image: debain"), "spec.image: there is no Image named 'debain' (known: debian)"),
        (("policy: strict", "policy: lax"), "spec.policy: there is no Policy named 'lax' (known: strict)"),
        (("52:54:00:12:34:10", "52:54:00:12:34"), "spec.nics[0].mac: '52:54:00:12:34' is not a MAC address"),
        (("52:54:00:12:34:20", "52:54:00:12:34:10"), "MAC 52:54:00:12:34:10 is used twice: it already belongs to a"),
        (("172.30.1.12", "172.30.1.11"), "address 172.30.1.11 is used twice: it already belongs to the BMC of"),
        (("172.30.1.12", "172.30.1.2"), "address 172.30.1.2 is used twice: it already belongs to the controller"),
        (("172.30.1.12", "172.30.1.256"), "spec.bmc.address: '172.30.1.256' is not an IP address"),
        (("172.30.1.12", "172.30.9.12"), "172.30.9.12 is outside network oob (172.30.1.0/24)"),
        (("address: 172.30.3.11", "address: 10.0.0.1"), "10.0.0.1 is outside network production (172.30.3.0/24)"),
        (("prefix: 172.30.1.0/24", "prefix: 172.30.1.7/24"), "is not a network such as 172.30.2.0/24 (no host bits)"),
        (("start: 172.30.2.100", "start: 172.30.4.100"), "dhcpRange.start: 172.30.4.100 is outside the network's"),
        (
            ("provisioning: 172.30.2.2", "provisioning: 172.30.2.2\n  rotationsPerMinute: 0"),
            "spec.rotationsPerMinute: must be between 1 and 100000",
        ),
        (("driftInterval: 1m", "driftInterval: often"), "spec.driftInterval: 'often' is not a duration such as 30s"),
        (("password: factory-word", "vaultRef: x"), "credential: give either username and password, or vaultRef"),
        (("factory/rack-7", "bmc/server-1/current"), "bmc.credential.vaultRef: 'bmc/server-1/current' is not below"),
        (("vaultRef: factory/rack-7", "vaultRef: site/keys/bmc-ca"), "is not below factory/: no document may name"),
        (("vaultRef: factory/rack-7", "vaultRef: factory/../bmc/x"), "is not below factory/"),
        (("vaultRef: factory/rack-7", "vaultRef: factory"), "is not below factory/"),
        (("ssh-ed25519 AAAA", "my-key AAAA"), "spec.users[0].sshKeys[0]: is not a public SSH key"),
        (("builtin: debian-12", "path: x.raw"), "spec.digest: is missing: an image from a file needs its SHA-256"),
        (("builtin: debian-12", "depot: {vendor: A, component: b}\n  path: x"), "spec: give one of builtin, depot"),
        (("  builtin: debian-12\n", ""), "spec: give one of builtin, depot and path"),
        (("server: server-1", "server: server-2"), "Assignment of server server-2 is used twice"),
    ],
)  # fmt: skip
def test_what_types_cannot_say(change: tuple[str, str], message: str) -> None:
    assert message in refused(rack(change))


def test_every_problem_is_told_at_once() -> None:
    text = rack(("52:54:00:12:34:10", "nonsense"), ("image: debian", "image: debain"))
    assert len(refused(text).splitlines()) == 2


def test_a_yaml_bomb_is_refused() -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    assert refused(bomb) == ("rack.yaml:1: a: anchors and aliases (& and *) are not allowed; write the value out")


def test_deep_nesting_is_refused() -> None:
    assert "nested deeper than 24 levels" in refused("a: " + "[" * 60 + "]" * 60)


def test_a_duplicate_key_is_refused() -> None:
    text = rack(("bootMethod: http", "bootMethod: http\n  bootMethod: http"))
    first = line_of(text, "bootMethod")
    assert refused(text) == (
        f"rack.yaml:{first + 1}: spec.bootMethod: the key 'bootMethod' is there twice (first in line {first})"
    )


def test_a_tag_is_refused() -> None:
    assert "the tag 'tag:yaml.org,2002:python/object" in refused("a: !!python/object/apply:os.system [id]")


def test_broken_yaml_names_the_line() -> None:
    assert refused("a: b\nc: [1, 2\n").startswith("rack.yaml:")


def test_a_huge_text_is_refused() -> None:
    assert "larger than 32 MiB" in refused("#" * (33 * 1024 * 1024))


def test_plain_words_of_yaml_1_1_stay_words() -> None:
    (resource,) = load_documents(
        "apiVersion: freehold/v1\nkind: Server\nmetadata: {name: a, labels: {country: no, mac: 10:20:30:40:50:59}}\n"
        "spec: {bmc: {address: 10.0.0.1, credential: {vaultRef: factory/x}}, nics: []}\n",
        "x.yaml",
    )
    assert resource.labels == {"country": "no", "mac": "10:20:30:40:50:59"}


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("5m", 300), ("24h", 86400), ("7d", 604800)])
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "0s", "5 m", "1h30m"])
def test_not_durations(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


WAIVER = """---
apiVersion: freehold/v1
kind: Waiver
metadata: {name: w}
spec: {server: SERVER, finding: FINDING, expires: "2099-01-01", reason: a contractMORE}
"""


@pytest.mark.parametrize(
    ("finding", "more", "wrong"),
    [
        ("bmc-account", ", account: field", None),
        ("bmc-account", "", "is the user name that a waiver of bmc-account lets stay"),
        ("bmc-account", ', account: ""', "is empty"),
        ("bmc-certificate", ", account: field", "is the user name that a waiver of bmc-account lets stay"),
    ],
)
def test_a_waived_account_has_a_name_and_no_other_waiver_has(finding: str, more: str, wrong: str | None) -> None:
    server = named(load_documents(RACK, "rack.yaml"), "Server").name
    text = RACK + WAIVER.replace("SERVER", server).replace("FINDING", finding).replace("MORE", more)
    if wrong is None:
        validate_set(load_documents(text, "rack.yaml"))
    else:
        assert f"spec.account: {wrong}" in refused(text)
