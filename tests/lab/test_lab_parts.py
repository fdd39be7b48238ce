"""The pure parts of the lab: command lines, networks, rules, facts, faults, console lines, firmware packages."""

import asyncio
import contextlib
import errno
import json
import os
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from freehold_lab import (
    accelerator,
    cli,
    control,
    faults,
    firmware_package,
    internet,
    layout,
    network,
    preflight,
    qemu,
    rogue,
)
from freehold_lab.console import Console, clean
from freehold_lab.errors import LabError
from freehold_lab.firmware_vars import SetSecureBoot
from freehold_lab.hardware import BootOverride, BootTarget, Faults
from freehold_lab.layout import LabPlan
from freehold_lab.machine_state import MachineState, checked_bios

PLAN = LabPlan("lab", Path("/srv/lab"), servers=2)
INFO = layout.hardware_info(PLAN, 1)


# ---- QEMU
def option(command: list[str], text: str) -> list[str]:
    return [part for part in command if text in part]


def test_ordinary_boot_leaves_the_order_to_the_variable_store() -> None:
    command = qemu.command(INFO, qemu.Launch("1.0.0"))
    assert not option(command, "bootindex")
    assert command[command.index("-action") + 1] == "reboot=shutdown"
    assert option(command, "IPv4PXESupport") == ["name=opt/org.tianocore/IPv4PXESupport,string=n"]
    assert all("romfile=" in part for part in option(command, "virtio-net-pci"))


def test_what_a_launch_changes() -> None:
    launch = qemu.Launch("1.0.0", media=Path("/a,b.iso"), network_boot=True, skip_erase=True, tpm=False)
    command = qemu.command(INFO, launch)
    assert option(command, "IPv4PXESupport") == ["name=opt/org.tianocore/IPv4PXESupport,string=y"]
    assert option(command, "file=/a,,b.iso")
    assert not option(command, "tpm")
    discards = {part.split("id=")[1].split(",")[0]: part.rsplit("=", 1)[1] for part in option(command, "discard=")}
    assert discards == {"nvme0": "unmap", "disk0": "ignore"}


def test_every_device_has_its_own_fixed_slot() -> None:
    slots = [part.split("addr=")[1].split(",")[0] for part in option(qemu.command(INFO, qemu.Launch("1")), "addr=")]
    assert sorted(slots) == ["0x2", "0x3", "0x4", "0x5", "0x6", "0x7"]


def test_smbios_says_who_the_server_is() -> None:
    tables = option(qemu.command(INFO, qemu.Launch("2.5.1")), "type=")
    assert any(t.startswith("type=0,") and "version=2.5.1" in t for t in tables)
    assert any(t.startswith("type=1,") and f"serial={INFO.serial}" in t and f"uuid={INFO.uuid}" in t for t in tables)
    assert any(t.startswith("type=3,") and "asset=lab-1" in t for t in tables)


@pytest.mark.host
def test_the_trial_guest_of_the_accelerator_probe_ends_and_a_wrong_accelerator_fails() -> None:
    assert accelerator.works("tcg", seconds=30)
    assert not accelerator.works("no-such-accelerator", seconds=30)


@pytest.mark.parametrize("hang", ["exec sleep 60", "trap '' TERM; sleep 60 & echo $! >$0.child; wait"])
def test_a_guest_that_hangs_costs_the_time_limit_and_no_more(
    hang: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/dev/kvm` opens, the guest spins for ever: as in many a virtual machine."""
    stub = tmp_path / "qemu-system-x86_64"
    stub.write_text(f"#!/bin/sh\n{hang}\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    assert not accelerator.works("kvm", seconds=0.3)
    assert 0.3 <= time.monotonic() - began < 3.0
    with contextlib.suppress(FileNotFoundError):
        os.kill(int(stub.with_name(f"{stub.name}.child").read_text()), signal.SIGKILL)


def test_without_qemu_there_is_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not accelerator.works("kvm")


@pytest.mark.parametrize(("words", "works", "kvm"), [([], True, True), ([], False, False), (["--tcg"], True, False)])
def test_kvm_is_tried_unless_somebody_says_not_to(
    words: list[str], works: bool, kvm: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[LabPlan] = []

    def up(plan: LabPlan, _: object) -> dict[str, Any]:
        plans.append(plan)
        return {"servers": []}

    monkeypatch.setattr(cli, "check_root", lambda: None)
    monkeypatch.setattr(cli.rack, "up", up)
    monkeypatch.setattr(accelerator, "kvm_works", lambda: works)
    assert cli.main(["up", *words]) == 0
    assert [plan.kvm for plan in plans] == [kvm]
    assert ("KVM does not work here: the processors are emulated" in capsys.readouterr().err) is not works


def test_a_board_may_have_no_tpm_and_a_server_that_is_none_may_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[LabPlan] = []

    def up(plan: LabPlan, _: object) -> dict[str, Any]:
        plans.append(plan)
        return {"servers": []}

    monkeypatch.setattr(cli, "check_root", lambda: None)
    monkeypatch.setattr(cli.rack, "up", up)
    words = ["up", "--tcg", "--dir", str(tmp_path / "lab"), "--servers", "2", "--no-tpm"]
    assert cli.main([*words, "server-2"]) == 0
    (plan,) = plans
    assert [layout.hardware_info(plan, number).has_tpm for number in (1, 2)] == [True, False]
    assert layout.plan_of(layout.facts(plan)).without_tpm == ("server-2",)
    assert cli.main([*words, "server-3"]) == 2
    assert "the lab will have no server-3" in capsys.readouterr().err


# ---- networks
def test_interface_names_fit_the_kernel() -> None:
    text = network.Layout("a-lab-with-long-name", network.MAX_SERVERS).fabric_batch()
    words = [line.split() for line in text.splitlines()]
    names = [w[2] for w in words if w[:2] in (["link", "add"], ["tuntap", "add"])]
    assert len(names) == len(set(names)) == 4 + 7 + 3 * network.MAX_SERVERS
    assert max(map(len, names)) <= 15


def test_legs_are_as_the_architecture_says() -> None:
    legs = network.Layout("lab", 2).legs
    assert {leg.network for leg in legs["controller"]} == {"oob", "provisioning"}
    assert {leg.network for leg in legs["gateway"]} == {"provisioning", "production", "wan"}
    assert {leg.network for leg in legs["client"]} == {"production"}
    assert "address add 172.30.1.12/24 dev oob" in network.Layout("lab", 2).role_batch("bmc2")
    assert "route add default via 172.30.2.1" in network.Layout("lab", 2).role_batch("controller")


@pytest.mark.parametrize("name", ["", "Lab", "a b", "-a", "a-", "x" * 21, "a/b", "../x"])
def test_bad_lab_names_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot be the name of a lab"):
        network.Layout(name, 1)


def test_namespaces_of_another_lab_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fh-a-fabric", "fh-a-bmc12", "fh-a-b-fabric", "fh-ab-fabric", "fh-a-bmc", "other"):
        (tmp_path / name).touch()
    monkeypatch.setattr(network, "NAMESPACES", tmp_path)
    assert network.namespaces("a") == ["fh-a-bmc12", "fh-a-fabric"]


def test_counters_are_summed_by_origin() -> None:
    packets = {"left_controller": 2, "left_provisioning": 3, "left_production": 5, "lookups": 7}
    items: list[dict[str, Any]] = [{"metainfo": {}}]
    items += [{"counter": {"name": name, "packets": count, "bytes": 0}} for name, count in packets.items()]
    assert network.parse_counters(json.dumps({"nftables": items})) == {"left": 10, **packets}


def test_gateway_counts_before_it_decides() -> None:
    rules = network.gateway_rules()
    assert rules.index("hook prerouting priority raw") < rules.index("hook forward")
    assert "hook forward priority filter; policy drop" in rules


def test_rogue_offers_from_its_own_range() -> None:
    command = rogue.dnsmasq_command()
    assert f"--dhcp-boot=tag:http,{rogue.BOOT_URL}" in command
    assert not any("172.30.2.1" + digit in part for part in command for digit in "0123456789")


# ---- facts
def test_servers_differ_in_everything_that_identifies_them() -> None:
    one, two = (layout.hardware_info(PLAN, number) for number in (1, 2))
    other = layout.hardware_info(LabPlan("other", Path("/srv/other")), 1)
    for pair in ((one, two), (one, other)):
        assert len({info.uuid for info in pair}) == len({info.serial for info in pair}) == 2
        macs = [nic.mac for info in pair for nic in info.nics]
        serials = [drive.serial for info in pair for drive in info.drives]
        assert len(set(macs)) == len(set(serials)) == 4
    assert all(len(drive.serial) <= 20 for drive in one.drives)


def test_facts_lead_back_to_the_plan() -> None:
    facts = json.loads(json.dumps(layout.facts(PLAN)))
    assert layout.plan_of(facts) == PLAN
    assert layout.server(facts, "server-2")["bmc_address"] == "172.30.1.12"
    with pytest.raises(LabError, match=r"no server 'server-3'. It has server-1, server-2."):
        layout.server(facts, "server-3")


def test_no_lab_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"there is no lab in .* Start one with `freehold lab up`"):
        layout.load(tmp_path)


def test_missing_packages_are_named_with_the_apt_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None if name.startswith("swtpm") else name)
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 0)
    with pytest.raises(LabError, match=r"apt-get install --no-install-recommends .*swtpm swtpm-tools"):
        preflight.check_host(LabPlan("lab", tmp_path))


def test_without_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match=r"needs root.*sudo"):
        preflight.check_root()


def test_a_full_disk_is_found_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 0)
    monkeypatch.setattr(preflight, "missing_packages", list)
    monkeypatch.setattr(preflight, "BYTES_PER_SERVER", 1 << 60)
    with pytest.raises(LabError, match=r"too full: .* MiB free"):
        preflight.check_host(LabPlan("lab", tmp_path / "lab"))
    assert not (tmp_path / "lab").exists()


# ---- state of a machine
def test_state_survives_a_restart_of_the_bmc(tmp_path: Path) -> None:
    state = MachineState(override=BootOverride(BootTarget.UEFI_HTTP, "Once", "http://x/y"), edits=[SetSecureBoot(True)])
    state.save(tmp_path)
    assert MachineState.load(tmp_path) == state


@pytest.mark.parametrize("attributes", [{"Unknown": 1}, {"NumaNodesPerSocket": "1"}, {"SerialConsole": 1}])
def test_bios_attributes_are_checked(attributes: dict[str, Any]) -> None:
    with pytest.raises(LabError):
        checked_bios(attributes)


def test_firmware_package_goes_round_and_damage_is_found() -> None:
    code = bytes(firmware_package.CODE_BYTES)
    package = firmware_package.pack("1.1.0", code)
    assert firmware_package.unpack(package) == ("1.1.0", code)
    with pytest.raises(LabError, match="damaged"):
        firmware_package.unpack(package[:-1] + b"\1")
    with pytest.raises(LabError, match="no firmware package"):
        firmware_package.unpack(b"MZ")
    with pytest.raises(LabError, match="the flash of this machine"):
        firmware_package.unpack(firmware_package.pack("1", b"short"))


# ---- faults and control
def test_faults_are_switched_shown_and_cleared() -> None:
    value = Faults()
    faults.switch(value, "bmc-slow", "2.5")
    faults.switch(value, "drive-skips-erase", "on")
    assert (value.bmc_slow_seconds, value.drive_skips_erase) == (2.5, True)
    assert faults.active(value) == {"bmc-slow": 2.5, "drive-skips-erase": True}
    faults.clear(value)
    assert faults.active(value) == {}


def test_all_faults_are_listed_with_where_they_are_on() -> None:
    rows = {row["fault"]: row for row in faults.listed({"server-1": {"bmc-slow": 2.5}, "server-2": {}}, rogue=True)}
    assert set(rows) == {*faults.SWITCHES, *faults.ACTIONS}
    assert {"tampered-image", "bmc-certificate"} < set(rows)
    assert all(row["takes"] for row in rows.values())
    assert rows["bmc-slow"]["on"] == {"server-1": 2.5}
    assert rows["rogue-dhcp"]["on"] == {"lab": True}
    assert rows["bmc-html"]["on"] == {}


def test_the_documentation_has_every_fault() -> None:
    table = (Path(__file__).parents[2] / "docs" / "lab.md").read_text()
    assert [name for name in (*faults.SWITCHES, *faults.ACTIONS) if f"| `{name}` |" not in table] == []


@pytest.mark.parametrize(
    ("name", "given"), [("bmc-slow", "x"), ("bmc-errors", "-1"), ("bmc-html", "yes"), ("nonsense", "on")]
)
def test_bad_faults_are_refused(name: str, given: str) -> None:
    with pytest.raises(LabError):
        faults.switch(Faults(), name, given)


async def test_control_socket_answers_at_a_long_path_and_passes_refusals_on(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    short = tmp_path / "s"

    async def refuse(_: dict[str, Any]) -> None:
        raise LabError("it cannot", remedy="Try again.")

    async def echo(request: dict[str, Any]) -> dict[str, Any]:
        return request

    server = await control.serve(short, {"echo": echo, "refuse": refuse})
    async with server:
        short.rename(deep / "control.sock")

        async def ask(op: str, **more: Any) -> Any:
            return await asyncio.to_thread(control.request, deep / "control.sock", op, server="s1", **more)

        assert await ask("echo", a=1) == {"a": 1}
        with pytest.raises(LabError, match=r"^s1: it cannot. Try again.$"):
            await ask("refuse")
        with pytest.raises(LabError, match="unknown request"):
            await ask("nonsense")
    with pytest.raises(LabError, match="its BMC process does not answer"):
        control.request(tmp_path / "nobody", "echo", server="s1")


# ---- console
def test_console_lines_are_readable() -> None:
    assert clean(b"\x1b[2J\x1b[01;01HBdsDxe: starting\r") == "BdsDxe: starting"
    assert clean(b"x Downloading...42%") == "x"


async def test_console_logs_seconds_and_passes_both_ways(tmp_path: Path) -> None:
    console = Console(tmp_path)
    await console.open()
    machine = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        "echo booting; read line; echo got $line",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert machine.stdout
    assert machine.stdin
    reader, writer = await asyncio.open_unix_connection(tmp_path / "console.sock")
    await asyncio.sleep(0.05)
    following = asyncio.create_task(console.follow(machine.stdout, machine.stdin))
    assert await asyncio.wait_for(reader.readline(), 5) == b"booting\n"
    writer.write(b"hello\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"got hello\n"
    await following
    await machine.wait()
    writer.close()
    await console.close()
    lines = [line.split(maxsplit=1) for line in console.log.read_text().splitlines()]
    assert [text for _, text in lines] == ["booting", "got hello"]
    assert all(0 <= float(seconds) < 10 for seconds, _ in lines)


# ---- the internet
def query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


def test_names_resolve_to_the_internet() -> None:
    answer = internet.dns_answer(query("example.org", 1), "198.51.100.10")
    assert answer is not None
    assert struct.unpack_from("!6H", answer) == (7, 0x8180, 1, 1, 0, 0)
    assert answer.endswith(bytes([198, 51, 100, 10]))
    empty = internet.dns_answer(query("example.org", 28), "198.51.100.10")
    assert empty is not None
    assert struct.unpack_from("!6H", empty)[3] == 0


@pytest.mark.parametrize("data", [b"", b"x" * 12, b"\0" * 11 + b"\xff" * 8, query("example.org", 1)[:-3]])
def test_garbage_gets_no_answer(data: bytes) -> None:
    assert internet.dns_answer(data, "198.51.100.10") is None


def test_a_disk_that_fills_up_is_said_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "lab/lab.json")

    monkeypatch.setattr(cli, "check_root", fill)
    assert cli.main(["status"]) == 1
    assert "lab/lab.json: No space left on device\n  what to do: Make room" in capsys.readouterr().err
