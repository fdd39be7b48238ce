"""The two real trees, read completely over TLS. The expected values were read from the files by hand."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from oob_support import TREES, Keys, running, tree_handler, unpack_trees

from freehold.out_of_band import server
from freehold.out_of_band.component_integrity import component_certificates, component_integrity
from freehold.out_of_band.inventory import Cpu, Nic, Tpm
from freehold.out_of_band.redfish import Credential, RedfishClient
from freehold.out_of_band.snmp import Snmp
from freehold.out_of_band.transport import BmcIdentity, fetch_identity

HPE, DMTF = TREES


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_trees(tmp_path_factory.mktemp("trees"))


@asynccontextmanager
async def client_of(trees: Path, name: str, tmp_path: Path) -> AsyncIterator[RedfishClient]:
    async with running(Keys(tmp_path, "bmc"), tree_handler(trees / name)) as bmc:
        identity = BmcIdentity(spki_sha256=(await fetch_identity(bmc.address)).spki_sha256)
        async with RedfishClient.connect(bmc.address, identity, Credential("root", "x")) as client:
            yield client
        assert bmc.log[-1][:2] == ("DELETE", "/redfish/v1/SessionService/Sessions/me")


@pytest.mark.parametrize(("name", "whole"), [(HPE, 1000), (DMTF, 240)])
@pytest.mark.slow
async def test_crawl_reads_every_resource_that_is_linked(trees: Path, tmp_path: Path, name: str, whole: int) -> None:
    async with client_of(trees, name, tmp_path) as client:
        crawl = await client.crawl()
    assert len(crawl.resources) >= whole
    empty = [uri for uri, body in crawl.resources.items() if not body]
    assert empty == (["/redfish/v1/Managers/1/SecurityService/PlatformCertUpdate/Certificates"] if name == HPE else [])
    assert all("HTTP 404" in reason for reason in crawl.unreadable.values())
    uris = {uri.rstrip("/").lower() for uri in crawl.resources}
    assert "/redfish/v1" in uris
    assert len(uris) == len(crawl.resources) or name == HPE  # HPE links some resources in two spellings


async def test_inventory_of_a_proliant(trees: Path, tmp_path: Path) -> None:
    async with client_of(trees, HPE, tmp_path) as client:
        inventory = await server.read_inventory(client)
    epyc = Cpu(model="AMD EPYC 7313 16-Core Processor", cores=16, threads=32)
    assert inventory.cpus == (epyc, epyc)
    assert inventory.memory_mib == 12 * 16384
    assert inventory.nics == (Nic(id="5", mac="84:16:0c:39:a1:e2"), Nic(id="6", mac="84:16:0c:39:a1:e3"))
    assert {d.serial: d.capacity_bytes for d in inventory.drives} == {
        "S5KWNA0T800474": 1600321314816,
        "S5KWNA0T800477": 1600321314816,
    }
    assert {(d.protocol, d.media, d.model) for d in inventory.drives} == {("SAS", "SSD", "VO001600JWZJQ")}
    assert inventory.tpm == Tpm(interface="TPM2_0", firmware_version="73.64")
    assert (inventory.manufacturer, inventory.serial) == ("HPE", "MXQ2370DLQ")
    assert inventory.uuid == "35383350-3837-584d-5132-333730444c51"
    assert inventory.bios_version == "A42 v3.72 (05/16/2025)"
    assert (inventory.bmc_model, inventory.bmc_version) == ("iLO 5", "iLO 5 v3.14")


async def test_inventory_of_the_dmtf_server(trees: Path, tmp_path: Path) -> None:
    async with client_of(trees, DMTF, tmp_path) as client:
        inventory = await server.read_inventory(client)
    # CPU2 and DIMM4 are absent, FPGA1 is no CPU, VLAN1 is no port, and the tree has SimpleStorage without serials.
    assert inventory.cpus == (Cpu(model="Multi-Core Intel(R) Xeon(R) processor 7xxx Series", cores=8, threads=16),)
    assert inventory.memory_mib == 3 * 32768
    assert {nic.mac for nic in inventory.nics} == {"12:44:6a:3b:04:11", "12:44:6a:3b:88:90", "aa:bb:cc:dd:ee:fe"}
    assert inventory.drives == ()
    assert inventory.tpm == Tpm(interface="TPM1_2", firmware_version="1.13b")
    assert (inventory.manufacturer, inventory.model, inventory.serial) == ("Contoso", "3500", "437XR1138R2")
    assert inventory.bmc_version == "1.45.455b66-rev4"


async def test_posture_of_a_proliant(trees: Path, tmp_path: Path) -> None:
    async with client_of(trees, HPE, tmp_path) as client:
        posture = await server.read_posture(client)
    assert not posture.enabled("IPMI")
    assert posture.enabled("SSH")
    assert posture.enabled("SNMP")
    assert {a.username for a in posture.accounts if a.enabled} == {"Administrator", "Ctobmaas"}
    assert posture.policy.min_password_length == 8
    assert {(c.name, c.enabled) for c in posture.connectors} == {
        ("HPE Compute Ops Management", False),
        ("HPE Insight Remote Support", False),
    }
    assert posture.snmp is not None
    assert (posture.snmp.v1, posture.snmp.defaults, posture.snmp.hidden) == (True, (), False)
    assert [interface.enabled for interface in posture.host_interfaces] == [False]
    kinds = [finding.kind for finding in server.posture_findings(posture, subject="s1")]
    assert "bmc-snmp-enabled" in kinds
    assert kinds.count("bmc-foreign-account") == 2
    assert "bmc-no-lockout" in kinds
    assert "bmc-ipmi-enabled" not in kinds
    assert "bmc-cloud-connector" not in kinds


async def test_posture_of_the_dmtf_server(trees: Path, tmp_path: Path) -> None:
    async with client_of(trees, DMTF, tmp_path) as client:
        posture = await server.read_posture(client)
    assert posture.policy.lockout_threshold == 5
    findings = server.posture_findings(posture, subject="s1", expected_accounts=frozenset({"Administrator"}))
    assert [finding.kind for finding in findings] == [
        "bmc-ipmi-enabled",
        "bmc-telnet-enabled",
        "bmc-external-accounts",
        "bmc-host-interface-no-auth",
        "bmc-host-interface-bootstrapping",
        "bmc-http-enabled",
        "bmc-snmp-enabled",
        "bmc-host-interface",
        "bmc-ssdp-enabled",
    ]
    assert posture.snmp == Snmp(enabled=True, v1=True, v2c=False, hidden=True)


async def test_logs_firmware_and_secure_boot_of_the_trees(trees: Path, tmp_path: Path) -> None:
    async with client_of(trees, DMTF, tmp_path) as client:
        # The tree's log says that its last page is followed by itself: read once, not for ever.
        lines = [line for line in await server.log_entries(client) if line.log == "Systems/Log1"]
        assert [line.id for line in lines] == ["1", "2"]
        assert {v.id: v.version for v in await server.firmware_versions(client)}["BIOS"] == "P79 v1.45"
        state = await server.secure_boot_state(client)
        assert (state.enabled, state.active, state.mode) == (False, False, "UserMode")
        assert {name: len(certificates) for name, certificates in state.databases.items()} == {
            "PK": 1,
            "KEK": 2,
            "db": 3,
            "dbx": 0,
        }
        assert len(state.signatures["db"]) == 1
    async with client_of(trees, HPE, tmp_path) as client:
        versions = {v.name: v.version for v in await server.firmware_versions(client)}
        assert versions["iLO 5"] == "3.14 Jun 16 2025"
        assert (await server.bios_attributes(client))["AcpiHpet"] == "Enabled"


async def test_what_the_dmtf_server_offers_to_prove(trees: Path, tmp_path: Path) -> None:
    async with client_of(trees, DMTF, tmp_path) as client:
        offered = await component_integrity(client)
        assert [(each.id, each.kind) for each in offered] == [
            ("SS-SPDM-0", "SPDM"),
            ("SS-SPDM-1", "SPDM"),
            ("USB-Integrity", "SPDM"),
            ("TPM-0", "TPM"),
        ]
        tpm = offered[-1]
        assert (tpm.target, tpm.enabled) == ("/redfish/v1/Chassis/1U/TrustedComponents/TPM", True)
        assert (tpm.longest_nonce, tpm.quotes) == (32, False)  # the mock-up shows no action
        assert await component_certificates(client, tpm)
    async with client_of(trees, HPE, tmp_path) as client:
        assert await component_integrity(client) == ()
