"""A whole lab on this host: up, boots, faults, the uplink, down without a trace. Needs root."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_traces import traces

from freehold_lab import layout
from freehold_lab.processes import ProcessId, with_lab_id

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

NAME = f"t{os.getpid()}"
LAB = (sys.executable, "-m", "freehold_lab")
LOADER = Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi")
FETCH = "import urllib.request, sys; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=2).read())"
LOOK_UP = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(bytes(20), (sys.argv[1], 53))"
)
PING = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)\n"
    "s.connect((sys.argv[1], 623)); s.send(bytes.fromhex('0600ff06000011be80000000')); sys.exit(not s.recv(100))"
)  # RMCP presence
KEY = "import ssl, sys; print(ssl.get_server_certificate((sys.argv[1], 443)))"
DHCP = (
    *(
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--user=root",
        "--group=root",
        "--port=0",
        "--pid-file=",
    ),
    *("--log-facility=-", "--leasefile-ro", "--interface=provisioning", "--bind-interfaces", "--no-ping"),
    *("--dhcp-authoritative", "--dhcp-range=172.30.2.100,172.30.2.199,255.255.255.0,1h", "--dhcp-option=3"),
)


def lab(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*LAB, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def lab_json(*arguments: object) -> Any:
    return json.loads(lab(*arguments, "--output", "json").stdout)


def wait(what: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.3)


class Running:
    """One lab with one server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts = lab_json("up", "--dir", directory, "--name", NAME)
        self.server = self.facts["servers"][0]

    def __call__(self, command: str, *arguments: object) -> Any:
        return lab_json(command, "--dir", self.directory, *arguments)

    def enter(self, role: str, *command: str) -> list[str]:
        return [*LAB, "exec", "--dir", str(self.directory), role, "--", *command]

    def run(self, role: str, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.enter(role, *command), capture_output=True, text=True, timeout=60, check=False)

    def console(self) -> str:
        """What the machine has said since it was switched on last."""
        text = Path(self.server["console_log"]).read_text()
        return text[text.rfind("--- power on") :]

    def redfish(self, method: str, path: str, body: Any = None) -> Any:
        script = Path(__file__).with_name("redfish_call.py")
        secret = f"{self.server['factory_user']}:{self.server['factory_password']}"
        command = (sys.executable, str(script), self.server["bmc_address"], secret, method, path, json.dumps(body))
        done = self.run("controller", *command)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("rack") / "lab"
    before = traces(NAME, directory)
    yield Running(directory)
    lab("down", "--dir", directory)
    assert traces(NAME, directory) == before


@pytest.fixture
def boot_network(running: Running, tmp_path: Path) -> Iterator[Path]:
    """DHCP and HTTP on the provisioning network; yields the log of the web server."""
    www = tmp_path / "www"
    www.mkdir()
    (www / "agent.efi").write_bytes(LOADER.read_bytes())
    log = tmp_path / "http.log"
    web = (
        sys.executable,
        "-m",
        "http.server",
        "--protocol",
        "HTTP/1.1",
        "--bind",
        "172.30.2.2",
        "--directory",
        str(www),
    )
    with log.open("wb") as output:
        children = [
            subprocess.Popen(running.enter("controller", *command), stdout=output, stderr=output)
            for command in (DHCP, web)
        ]
    yield log
    for child in children:
        inner = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()]
        for pid in [*inner, child.pid]:
            os.kill(pid, signal.SIGTERM)
        child.wait()


def test_status_says_how_each_server_is(running: Running) -> None:
    value = running("status")
    assert [(row["name"], row["alive"], row["power"]) for row in value["servers"]] == [("server-1", True, "Off")]
    assert value["missing_namespaces"] == []
    assert value["wan"]["connected"]


def test_a_second_up_is_refused_in_words(running: Running, tmp_path: Path) -> None:
    again = lab("up", "--dir", running.directory, "--name", NAME, check=False)
    assert again.returncode == 1
    assert "is up already" in again.stderr
    elsewhere = lab("up", "--dir", tmp_path / "other", "--name", NAME, check=False)
    assert f"is up already, in {running.directory}" in elsewhere.stderr
    assert running("status")["servers"][0]["alive"]


def test_wan_counts_what_tries_to_leave_open_and_cut(running: Running) -> None:
    running("wan", "restore")
    running("wan", "reset-counters")
    assert (
        running.run("controller", sys.executable, "-c", FETCH, "http://203.0.113.7/").stdout
        == "this is the world outside\n"
    )
    assert running("wan", "counters")["left_controller"] > 0
    assert running("wan", "cut") | {"left": 0} == running("wan", "counters") | {"left": 0}
    running("wan", "reset-counters")
    assert running.run("controller", sys.executable, "-c", FETCH, "http://203.0.113.7/").returncode != 0
    running.run("client", sys.executable, "-c", LOOK_UP, "9.9.9.9")
    running.run("client", sys.executable, "-c", LOOK_UP, "172.30.3.1")
    counted = running("wan", "counters")
    running("wan", "restore")
    assert counted["connected"] is False
    assert counted["left_controller"] >= 1
    assert counted["left_production"] == 1
    assert counted["lookups"] == 2


def test_blank_machine_reaches_the_firmware_and_fetches_what_the_override_names(
    running: Running, boot_network: Path
) -> None:
    boot = {
        "BootSourceOverrideTarget": "UefiHttp",
        "BootSourceOverrideEnabled": "Once",
        "HttpBootUri": "http://172.30.2.2:8000/agent.efi",
    }
    running.redfish("PATCH", "/redfish/v1/Systems/1", {"Boot": boot})
    running("power", "server-1", "on")
    wait(lambda: "BdsDxe: starting Boot0F00" in running.console())
    assert "GET /agent.efi" in boot_network.read_text()
    system = running.redfish("GET", "/redfish/v1/Systems/1")
    assert system["PowerState"] == "On"
    assert system["Boot"]["BootSourceOverrideEnabled"] == "Disabled"  # Once is spent
    assert running("fault", "power-loss", "server-1") == {"power": "Off"}
    assert running("status")["servers"][0]["power"] == "Off"


def test_guest_reboot_is_a_new_boot_and_the_boot_order_is_the_variable_store(running: Running) -> None:
    options = {o["DisplayName"]: o["BootOptionReference"] for o in boot_options(running)}
    shell = options["EFI Internal Shell"]
    running.redfish("PATCH", "/redfish/v1/Systems/1", {"Boot": {"BootOrder": [shell]}})
    running("power", "server-1", "on")
    wait(lambda: "Shell>" in raw_console(running, b"\r") or "UEFI Interactive Shell" in running.console())
    running.redfish("PATCH", "/redfish/v1/Systems/1", {"Boot": {"BootOrder": [options["UiApp"], shell]}})
    wait(lambda: raw_console(running, b"\x1b\rreset\r") and "the machine rebooted" in running.console())
    assert running("status")["servers"][0]["power"] == "On"
    running("power", "server-1", "off")
    order = running.redfish("GET", "/redfish/v1/Systems/1")["Boot"]["BootOrder"]
    assert order[:2] == [options["UiApp"], shell]


def boot_options(running: Running) -> list[dict[str, Any]]:
    members = running.redfish("GET", "/redfish/v1/Systems/1/BootOptions")["Members"]
    return [running.redfish("GET", member["@odata.id"]) for member in members]


def raw_console(running: Running, typed: bytes) -> str:
    """Type into the console and read what comes within a second."""
    directory = os.open(Path(running.server["console_socket"]).parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"/proc/self/fd/{directory}/console.sock")
        os.close(directory)
        connection.settimeout(1)
        connection.sendall(typed)
        data = b""
        try:
            while chunk := connection.recv(4096):
                data += chunk
        except TimeoutError:
            pass
    return data.decode(errors="replace") or " "


def test_bmc_reboot_answers_nothing_and_comes_back(running: Running) -> None:
    running("fault", "bmc-reboot", "server-1", "2.5")
    probe = "import socket, sys; socket.create_connection((sys.argv[1], 443), timeout=1)"

    def reachable() -> bool:
        return running.run("controller", sys.executable, "-c", probe, running.server["bmc_address"]).returncode == 0

    assert not reachable()
    wait(reachable, 20)


def test_ipmi_answers_on_the_out_of_band_network_until_redfish_turns_it_off(running: Running) -> None:
    def answers() -> bool:
        return running.run("controller", sys.executable, "-c", PING, running.server["bmc_address"]).returncode == 0

    protocols = "/redfish/v1/Managers/1/NetworkProtocol"
    assert answers()
    running.redfish("PATCH", protocols, {"IPMI": {"ProtocolEnabled": False}})
    assert not answers()
    running("fault", "ipmi-stays-on", "server-1", "on")
    assert answers()
    running("fault", "clear")
    assert not answers()
    running.redfish("PATCH", protocols, {"IPMI": {"ProtocolEnabled": True}})
    assert answers()


def test_another_board_shows_another_key(running: Running) -> None:
    def shown() -> str:
        return running.run("controller", sys.executable, "-c", KEY, running.server["bmc_address"]).stdout

    before = shown()
    assert before.startswith("-----BEGIN CERTIFICATE-----")
    running("fault", "bmc-certificate", "server-1")
    assert shown() != before


def test_rogue_dhcp_is_there_and_gone(running: Running) -> None:
    assert running("fault", "rogue-dhcp", "on") == {"rogue-dhcp": True}
    assert running("fault", "rogue-dhcp", "on") == {"rogue-dhcp": True}
    assert {"fault": "rogue-dhcp", "on": {"lab": True}}.items() <= running("fault", "list")["items"][-2].items()
    assert running("fault", "rogue-dhcp", "off") == {"rogue-dhcp": False}


def test_down_after_kill_nine_leaves_nothing_and_up_cleans_by_itself(tmp_path: Path) -> None:
    directory, name = tmp_path / "lab", f"{NAME}-k"
    before = traces(name, directory)
    plan = layout.LabPlan(name, directory)
    lab("up", "--dir", directory, "--name", name)
    lab("power", "--dir", directory, "server-1", "on")
    assert any("ipmi_sim" in line for line in command_lines(plan))
    kill_all(plan, "freehold_lab.bmcd")
    parts = ("qemu", "swtpm", "ipmi_sim")
    wait(lambda: not any(part in line for part in parts for line in command_lines(plan)), 10)  # they die with it
    assert lab("status", "--dir", directory, check=False).returncode == 3
    lab("up", "--dir", directory, "--name", name)  # over the ruins
    assert lab("status", "--dir", directory).returncode == 0
    kill_all(plan, "")
    (directory / layout.PROCESSES).unlink()
    lab("down", "--dir", directory)
    assert traces(name, directory) == before
    assert "there was no lab" in lab("down", "--dir", directory, "--name", name).stdout


def test_down_by_name_alone_when_the_directory_is_lost(tmp_path: Path) -> None:
    directory, name = tmp_path / "lab", f"{NAME}-l"
    before = traces(name, directory)
    lab("up", "--dir", directory, "--name", name)
    (directory / layout.FACTS).unlink()
    lab("down", "--dir", tmp_path / "nowhere", "--name", name)
    assert traces(name, directory) == before


def command_lines(plan: layout.LabPlan) -> list[str]:
    lines = []
    for process in with_lab_id(plan.lab_id()):
        try:
            lines.append(Path(f"/proc/{process.pid}/cmdline").read_text().replace("\0", " "))
        except FileNotFoundError:
            continue
    return lines


def kill_all(plan: layout.LabPlan, needle: str) -> None:
    killed: list[ProcessId] = []
    for process in with_lab_id(plan.lab_id()):
        if needle in Path(f"/proc/{process.pid}/cmdline").read_text().replace("\0", " "):
            process.end(signal.SIGKILL)
            killed.append(process)
    assert killed
