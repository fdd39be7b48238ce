"""The fault "rogue DHCP": a stranger on the provisioning network who offers addresses and a boot file of his own."""

import subprocess

from freehold_lab import layout, network
from freehold_lab.errors import LabError
from freehold_lab.layout import LabPlan
from freehold_lab.processes import ProcessId, end_all
from freehold_lab.rack import start_daemon

ROLE = "rogue"
BOOT_URL = f"http://{network.address('provisioning', network.ROGUE_HOST)}/rogue.efi"


def dnsmasq_command() -> list[str]:
    prefix = network.PREFIXES["provisioning"]
    return [
        *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--group=root", "--port=0"),
        *("--log-facility=-", "--log-dhcp", "--pid-file=", "--leasefile-ro", "--interface=provisioning"),
        *(
            "--bind-interfaces",
            "--no-ping",
            "--dhcp-authoritative",
            f"--dhcp-range={prefix}.220,{prefix}.240,255.255.255.0,1h",
        ),
        *("--dhcp-vendorclass=set:http,HTTPClient", "--dhcp-option-force=tag:http,60,HTTPClient"),
        *(f"--dhcp-boot=tag:http,{BOOT_URL}", "--dhcp-boot=tag:!http,rogue.efi"),
    ]


def is_on(plan: LabPlan) -> bool:
    return plan.layout.namespace(ROLE) in network.namespaces(plan.name)


def turn_on(plan: LabPlan) -> None:
    if is_on(plan):
        return
    network.add_rogue(plan.layout)
    process = start_daemon(plan, ROLE, plan.directory / layout.LOGS / "rogue-dhcp.log", *dnsmasq_command())
    try:
        code = process.wait(timeout=0.3)
    except subprocess.TimeoutExpired:
        return
    turn_off(plan)
    raise LabError(f"the rogue dnsmasq ended with code {code}", remedy="Read logs/rogue-dhcp.log of the lab.")


def turn_off(plan: LabPlan) -> None:
    if is_on(plan):
        namespace = plan.layout.namespace(ROLE)
        pids = network.processes_inside(namespace)
        end_all(found for pid in pids if (found := ProcessId.of(pid)))
        network.delete_namespace(namespace)
