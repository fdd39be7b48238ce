"""What the first boot of the OS makes of a seed."""

import json

import pytest

from freehold.model.resources import NetworkSpec, Nic, User
from freehold.provisioning.first_boot import nocloud
from freehold.provisioning.images.guest.first_boot import network_file, plan

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 ops@site"


def seed(**documents: object) -> dict[str, bytes]:
    return {name.replace("_", "-"): json.dumps(value).encode() for name, value in documents.items()}


def test_the_seed_that_freehold_writes_is_understood_whole() -> None:
    networks = {
        "production": NetworkSpec(role="production", prefix="172.30.3.0/24", gateway="172.30.3.1", dns=("172.30.3.1",)),
        "provisioning": NetworkSpec(role="provisioning", prefix="172.30.2.0/24", gateway="172.30.2.1"),
    }
    nics = [
        Nic(mac="52:54:00:00:00:01", network="provisioning"),
        Nic(mac="52:54:00:00:00:02", network="production", address="172.30.3.11"),
    ]
    made = plan(nocloud("i-1", "node1", [User(name="ops", ssh_keys=(KEY,))], nics, networks))
    assert made.problems == []
    assert (made.instance, made.hostname) == ("i-1", "node1")
    assert made.users[0]["ssh_authorized_keys"] == [KEY]
    assert made.files["/etc/sudoers.d/90-ops"] == "ops ALL=(ALL) NOPASSWD:ALL\n"
    assert made.files["/etc/resolv.conf"] == "nameserver 172.30.3.1\n"
    production = made.files["/etc/systemd/network/10-nic1.network"].splitlines()
    assert {"MACAddress=52:54:00:00:00:02", "DHCP=no", "Address=172.30.3.11/24", "Gateway=172.30.3.1"} <= set(
        production
    )
    assert "DHCP=ipv4" in made.files["/etc/systemd/network/10-nic0.network"]


def test_an_empty_seed_asks_for_nothing() -> None:
    made = plan({})
    assert (made.files, made.users, made.problems) == ({}, [], [])


def test_keys_without_a_user_go_to_the_default_user() -> None:
    made = plan(seed(user_data={"ssh_authorized_keys": [KEY]}))
    assert [(user["name"], user["ssh_authorized_keys"]) for user in made.users] == [("debian", [KEY])]


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ({"user_data": {"packages": ["nginx"]}}, "'packages' is not supported"),
        ({"user_data": {"hostname": "bad name\n"}}, "is not a host name"),
        ({"user_data": {"users": [{"name": "a b"}]}}, "no valid name"),
        ({"user_data": {"users": [{"name": "a", "ssh_authorized_keys": ["x\ny"]}]}}, "not an SSH public key"),
        ({"user_data": {"users": [{"name": "a", "sudo": "ALL\nb ALL"}]}}, "not understood"),
        ({"network_config": {"version": 1}}, "version 1, not 2"),
        ({"network_config": {"version": 2, "bonds": {}}}, "'bonds' is not supported"),
    ],
)
def test_what_cannot_be_done_is_said(documents: dict[str, object], said: str) -> None:
    made = plan(seed(**documents))
    assert any(said in problem for problem in made.problems), made.problems


def test_a_document_that_is_not_json_is_said() -> None:
    assert "user-data is not JSON" in plan({"user-data": b"#cloud-config\nhostname: x\n"}).problems[0]


def test_a_value_cannot_smuggle_in_a_setting() -> None:
    with pytest.raises(ValueError, match="line break"):
        network_file("nic0", {"addresses": ["10.0.0.1/24\nGateway=6.6.6.6"]})


def test_a_route_becomes_a_section() -> None:
    text = network_file("eth0", {"routes": [{"to": "default", "via": "10.0.0.1", "metric": 5}], "mtu": 9000})
    assert "[Route]\nDestination=0.0.0.0/0\nGateway=10.0.0.1\nMetric=5\n" in text
    assert "[Match]\nName=eth0\n[Link]\nMTUBytes=9000\n" in text
