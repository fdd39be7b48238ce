import yaml

from freehold.model.resources import NetworkSpec, Nic, User
from freehold.provisioning.first_boot import nocloud

NETWORKS = {
    "provisioning": NetworkSpec(role="provisioning", prefix="172.30.2.0/24"),
    "production": NetworkSpec(role="production", prefix="172.30.3.0/24", gateway="172.30.3.1", dns=("172.30.3.53",)),
}
NICS = (
    Nic(mac="52:54:00:AA:00:01", network="provisioning"),
    Nic(mac="52:54:00:aa:00:02", network="production", address="172.30.3.11"),
)


def test_the_three_documents_say_what_was_declared():
    files = nocloud("s1/7", "web-1", [User(name="ada", ssh_keys=("ssh-ed25519 AAAA ada",))], NICS, NETWORKS)
    assert yaml.safe_load(files["meta-data"]) == {"instance-id": "s1/7", "local-hostname": "web-1"}
    assert files["user-data"].startswith(b"#cloud-config\n")
    (user,) = yaml.safe_load(files["user-data"])["users"]
    assert user["name"] == "ada"
    assert user["ssh_authorized_keys"] == ["ssh-ed25519 AAAA ada"]
    assert user["lock_passwd"] is True
    network = yaml.safe_load(files["network-config"])
    assert network["version"] == 2
    assert network["ethernets"]["nic0"] == {"match": {"macaddress": "52:54:00:aa:00:01"}, "dhcp4": True}
    assert network["ethernets"]["nic1"] == {
        "match": {"macaddress": "52:54:00:aa:00:02"},
        "dhcp4": False,
        "addresses": ["172.30.3.11/24"],
        "gateway4": "172.30.3.1",
        "nameservers": {"addresses": ["172.30.3.53"]},
    }


def test_a_name_that_looks_like_yaml_stays_a_name():
    files = nocloud("i", "yes", [User(name="null", ssh_keys=("a: b",))], (), {})
    (user,) = yaml.safe_load(files["user-data"])["users"]
    assert (user["name"], user["ssh_authorized_keys"]) == ("null", ["a: b"])
    assert yaml.safe_load(files["meta-data"])["local-hostname"] == "yes"
