import os
import subprocess
import sys

import pytest

from freehold.model.errors import FreeholdError
from freehold.provisioning.dhcp import BootHost, DhcpSettings, dnsmasq_config, hosts_file
from freehold.provisioning.rogue import COOKIE, FIXED, Offer, discover, judge, parse_offer, parse_options

SETTINGS = DhcpSettings(
    interface="prov", server="172.30.2.2", first="172.30.2.100", last="172.30.2.199", netmask="255.255.255.0",
    boot_url="http://172.30.2.2:8080/boot/agent.efi",
)  # fmt: skip


def test_config_answers_only_known_and_names_nothing_outside(tmp_path):
    lines = dnsmasq_config(SETTINGS, tmp_path).splitlines()
    assert "dhcp-ignore=tag:!known" in lines
    assert "dhcp-boot=tag:http,tag:boots,http://172.30.2.2:8080/boot/agent.efi" in lines
    assert "dhcp-option=option:router" in lines
    assert "port=0" in lines
    assert not any(line.startswith(("enable-tftp", "server=")) for line in lines)


@pytest.mark.host
@pytest.mark.parametrize("tftp", [None, "/tmp"])
def test_config_passes_dnsmasqs_own_test(tmp_path, tftp):
    import msgspec

    config = tmp_path / "c"
    config.write_text(dnsmasq_config(msgspec.structs.replace(SETTINGS, tftp_root=tftp, gateway="172.30.2.1"), tmp_path))
    done = subprocess.run(["dnsmasq", "--test", f"--conf-file={config}"], capture_output=True, text=True)
    assert "syntax check OK" in done.stderr


@pytest.mark.parametrize("change", [{"interface": "a\nport=53"}, {"boot_url": "http://x/ y"}, {"first": "10.0.0.1"}])
def test_settings_that_inject_or_do_not_fit_are_refused(tmp_path, change):
    import msgspec

    with pytest.raises(FreeholdError):
        dnsmasq_config(msgspec.structs.replace(SETTINGS, **change), tmp_path)


def test_hosts_are_sorted_and_well_formed():
    hosts = [
        BootHost(mac="52:54:00:00:00:11", boots=False),
        BootHost(mac="52:54:00:00:00:10", address="172.30.2.10", hostname="n0"),
    ]
    assert hosts_file(hosts) == "52:54:00:00:00:10,set:boots,172.30.2.10,n0\n52:54:00:00:00:11\n"


@pytest.mark.parametrize(
    "hosts",
    [
        [BootHost(mac="52:54:00:00:00:1")], [BootHost(mac="*:*:*:*:*:*")],
        [BootHost(mac="52:54:00:00:00:10\n52:54:00:00:00:11")],
        [BootHost(mac="52:54:00:00:00:10", hostname="a,set:known")], [BootHost(mac="52:54:00:00:00:10")] * 2,
        [BootHost(mac="52:54:00:00:00:10", address="10.0.0.1"), BootHost(mac="52:54:00:00:00:11", address="10.0.0.1")],
    ],
)  # fmt: skip
def test_bad_hosts_are_refused(hosts):
    with pytest.raises(FreeholdError):
        hosts_file(hosts)


def offer_packet(transaction=7, options=b"\x35\x01\x02\x36\x04\x0a\x00\x00\x01", file=b"evil.efi"):
    head = FIXED.pack(2, 1, 6, 0, transaction, 0, 0, b"", b"\x0a\0\0\x64", b"\x0a\0\0\1", b"", b"", b"", file)
    return head + COOKIE + options + b"\xff"


def test_offer_is_read():
    offer = parse_offer(offer_packet(), "10.0.0.1", 7)
    assert offer == Offer(
        source="10.0.0.1",
        server_id="10.0.0.1",
        offered="10.0.0.100",
        boot_file="evil.efi",
        next_server="10.0.0.1",
        routers=(),
    )


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        offer_packet(8),
        offer_packet(options=b"\x35\x01\x05"),
        offer_packet(options=b"\x35\x09\x02"),
        discover(7, b"\2" * 6),
    ],
)
def test_what_is_no_offer_for_us_is_none(packet):
    assert parse_offer(packet, "10.0.0.1", 7) is None


def test_every_cut_of_an_offer_is_survived():
    packet = offer_packet(options=b"\x35\x01\x02\x34\x01\x01\x03\x04\x0a\x00\x00\x01", file=b"\x43\x03abc\xff")
    for length in range(len(packet)):
        parse_offer(packet[:length], "10.0.0.1", 7)
    assert parse_offer(packet, "10.0.0.1", 7).boot_file == "abc"
    assert parse_options(b"\x01") is None


def test_only_foreign_servers_are_findings():
    ours = Offer(
        source="1.1.1.1", server_id="1.1.1.1", offered="1.1.1.9", boot_file="", next_server="0.0.0.0", routers=()
    )
    import msgspec

    spoofed = msgspec.structs.replace(ours, source="6.6.6.6")
    findings = judge([ours, spoofed, spoofed], frozenset({"1.1.1.1"}), "prov")
    assert [finding.kind for finding in findings] == ["rogue-dhcp"]
    assert "6.6.6.6" in findings[0].detail


CLIENT = """
import asyncio
from freehold.provisioning import rogue
rogue.os.urandom = lambda n: b"\\x54\\0\\0\\0\\x10" if n == 5 else b"abcd"  # so the probe is 02:54:00:00:00:10
offers = asyncio.run(rogue.probe("c0", wait=1.0))
judged = [len(rogue.judge(offers, ours, "c0")) for ours in (frozenset({"172.31.9.2"}), frozenset())]
print(*[(o.offered, o.boot_file, o.server_id, o.routers) for o in offers], judged)
"""
SERVER = """
import asyncio, pathlib, subprocess, sys
from freehold.provisioning import dhcp
directory, client, script = sys.argv[1:]
def ask(name):
    done = subprocess.run(["ip", "netns", "exec", client, sys.executable, "-c", script], stdout=subprocess.PIPE)
    print(name, done.stdout.decode().strip(), flush=True)
async def main():
    settings = dhcp.DhcpSettings(interface="s0", server="172.31.9.2", first="172.31.9.100", last="172.31.9.199",
                                 netmask="255.255.255.0", boot_url="http://172.31.9.2/boot/agent.efi",
                                 tftp_root=directory)
    daemon = dhcp.Dnsmasq(settings, pathlib.Path(directory))
    await daemon.start()
    await asyncio.to_thread(ask, "unknown")
    await daemon.reload([dhcp.BootHost(mac="02:54:00:00:00:10", address="172.31.9.50", hostname="n0")])
    await asyncio.sleep(0.3)
    await asyncio.to_thread(ask, "known")
    await daemon.reload([dhcp.BootHost(mac="02:54:00:00:00:10", address="172.31.9.50", hostname="n0", boots=False)])
    await asyncio.sleep(0.3)
    await asyncio.to_thread(ask, "installed")
    await daemon.reload([])
    await asyncio.sleep(0.3)
    await asyncio.to_thread(ask, "gone")
    fetch = ["busybox", "tftp", "-g", "-r", "agent.efi", "-l", directory + "/fetched", "172.31.9.2"]
    subprocess.run(["ip", "netns", "exec", client, *fetch], check=True)
    await daemon.stop()
    print("running", daemon.running)
asyncio.run(main())
"""


@pytest.mark.lab
def test_dnsmasq_answers_the_known_and_ignores_the_unknown(tmp_path):
    """Two namespaces joined by a veth pair: dnsmasq in one, the probe as a client in the other, by TFTP too."""
    agent = os.urandom(300_001)  # several hundred blocks, and a last one that is not full
    (tmp_path / "agent.efi").write_bytes(agent)
    server, client = (f"fh-dhcp-{os.getpid()}-{end}" for end in "sc")
    for name in (server, client):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for name, command in (
            (server, f"link add s0 type veth peer name c0 netns {client}"), (server, "addr add 172.31.9.2/24 dev s0"),
            (server, "link set s0 up"), (client, "link set c0 up"),
            (client, "addr add 172.31.9.9/24 dev c0"),
        ):  # fmt: skip
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        command = ["ip", "netns", "exec", server, sys.executable, "-c", SERVER, str(tmp_path), client, CLIENT]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        for name in (server, client):
            subprocess.run(["ip", "netns", "del", name], check=True)
    assert done.stdout.splitlines() == [
        "unknown [0, 0]",
        "known ('172.31.9.50', 'http://172.31.9.2/boot/agent.efi', '172.31.9.2', ()) [0, 1]",
        "installed ('172.31.9.50', '', '172.31.9.2', ()) [0, 1]",
        "gone [0, 0]",
        "running False",
    ], done.stderr
    assert (tmp_path / "fetched").read_bytes() == agent
