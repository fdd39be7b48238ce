"""The images on an emulated server: OVMF with Secure Boot and the operator's keys only, CD, blank NVMe, no TPM.

A stand-in for the agent writes the image and the seed as the real one does, so that this is a test of images alone.
The first run builds the base images (minutes); they stay in the cache.
"""

import functools
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from freehold.model.resources import User
from freehold.provisioning.first_boot import nocloud
from freehold.provisioning.images import agent_ramdisk, disk
from freehold.provisioning.images.artifacts import Cache, default_root
from freehold.provisioning.images.build import BaseArtifacts, SiteArtifacts, SiteMaterial, assemble_site, build_base
from freehold.provisioning.images.tools import words
from freehold.root_of_trust.secure_boot_signing import Signer, sign_image

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]
HOST = "10.0.2.2"  # the host, as QEMU's user network shows it
OWNER = "11111111-2222-4333-8444-555555555555"
OVMF = Path("/usr/share/OVMF")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 ops@site"
STAND_IN = """
import hashlib, http.client, json, os, ssl, subprocess, sys, time, urllib.parse
say = lambda *words: print("STAND-IN", *words, flush=True)
with open("/etc/freehold/site.json") as file:
    url = urllib.parse.urlsplit(json.load(file)["stage2_url"])
if sys.argv[-1] == "ramdisk":
    say("ramdisk", all(os.path.exists(f"/etc/freehold/{name}") for name in ("ca.pem", "image.pub")))
    for tool in (["openssl", "version"], ["nvme", "version"], ["zstd", "--version"], ["blkdiscard", "--version"]):
        subprocess.run(tool, check=True, stdout=subprocess.DEVNULL)
    server = http.client.HTTPConnection(url.hostname, url.port)
    server.request("GET", "/os.raw")
    answer, target = server.getresponse(), os.open("/dev/nvme0n1", os.O_WRONLY)
    while chunk := answer.read(4 << 20):
        os.write(target, chunk)
    server.request("GET", "/seed")
    os.pwrite(target, server.getresponse().read(), SEED_OFFSET)
    os.fsync(target)
    say("written")
    subprocess.run(["reboot", "-f"])
else:
    while subprocess.run(["systemctl", "is-active", "--quiet", "ssh.service"]).returncode:
        time.sleep(0.5)
    variables = "/sys/firmware/efi/efivars"
    name = next(name for name in os.listdir(variables) if name.startswith("SecureBoot-"))
    with open(f"{variables}/{name}", "rb") as file:
        secure = file.read()[4]
    with open("/var/lib/freehold/first-boot.json") as file:
        first_boot = json.load(file)
    with open("/home/ops/.ssh/authorized_keys") as file:
        keys = file.read()
    with open("/etc/shadow") as file:
        locked = next(line for line in file if line.startswith("root:")).split(":")[1].startswith("!")
    facts = {"secure_boot": secure, "first_boot": first_boot, "keys": keys, "root_locked": locked,
             "hostname": os.uname().nodename, "host_keys": sorted(n for n in os.listdir("/etc/ssh") if "host" in n)}
    say("ready", json.dumps(facts))
    while not os.path.exists("/var/lib/freehold/grown"):
        time.sleep(1)
    say("grown", os.statvfs("/").f_blocks * os.statvfs("/").f_frsize)
    time.sleep(1000)
""".replace("SEED_OFFSET", str(disk.SEED_START_MIB << 20))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseArtifacts:
    agent = tmp_path_factory.mktemp("source") / "agent"
    agent.mkdir()
    (agent / "__init__.py").touch()
    (agent / "__main__.py").write_text(STAND_IN)
    return build_base(Cache(default_root()), agent=agent)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A db key and its certificate, as PEM; the files stay outside of the site's directory."""
    key, certificate = (tmp_path_factory.mktemp("keys") / name for name in ("db.key", "db.pem"))
    request = words("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-db/")
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key.read_bytes(), certificate.read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A directory, and the port of the loopback that serves it."""
    directory = tmp_path_factory.mktemp("www")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    handler.log_message = lambda *words: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as daemon:
        threading.Thread(target=daemon.serve_forever, daemon=True).start()
        yield directory, daemon.server_address[1]
        daemon.shutdown()


@pytest.fixture(scope="module")
def site(base: BaseArtifacts, server: tuple[Path, int], db: tuple[bytes, bytes]) -> SiteArtifacts:
    directory, port = server
    url = f"http://{HOST}:{port}"
    key = serialization.load_pem_private_key(db[0], None)
    assert isinstance(key, rsa.RSAPrivateKey)
    signer = Signer(x509.load_pem_x509_certificate(db[1]), key)

    def sign(image: bytes) -> bytes:
        return sign_image(image, [signer])

    return assemble_site(base, SiteMaterial("lab", "https://unused:1", url, b"CA", b"PUB", sign), directory)


def console(command: list[str], until: str, log: Path, limit_s: float = 400) -> list[str]:
    """The lines on the serial console up to the one that has `until`; QEMU is ended then."""
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as vm:
        watchdog = threading.Timer(limit_s, vm.kill)
        watchdog.start()
        begun = time.monotonic()
        try:
            assert vm.stdout is not None
            with log.open("w") as file:
                for line in vm.stdout:
                    file.write(f"{time.monotonic() - begun:8.2f} {line}")
                    lines.append(line)
                    if until in line:
                        return lines
        finally:
            watchdog.cancel()
            vm.kill()
    raise AssertionError(f"no {until!r} on the console within {limit_s} s:\n{''.join(lines[-25:])}")


def qemu(*options: str) -> list[str]:
    return [
        *words("qemu-system-x86_64 -machine q35,smm=off -accel tcg,thread=multi -m 1024 -smp 1 -nodefaults"),
        *words("-display none -serial stdio -monitor none -netdev user,id=n0"),
        *words("-device virtio-net-pci,netdev=n0,romfile= -device virtio-rng-pci"),
        *options,
    ]


def secure_variables(certificate: bytes, out: Path) -> Path:
    pem = out.with_suffix(".pem")
    pem.write_bytes(certificate)
    keys = ["--set-pk", OWNER, pem, "--add-kek", OWNER, pem, "--add-db", OWNER, pem]
    subprocess.run(
        [Path(sys.executable).with_name("virt-fw-vars"), "-i", OVMF / "OVMF_VARS_4M.fd", "-o", out, "--sb", *keys],
        check=True,
    )
    return out


def test_a_blank_disk_becomes_a_configured_os(
    site: SiteArtifacts, server: tuple[Path, int], db: tuple[bytes, bytes], tmp_path: Path
) -> None:
    documents = nocloud("i-1", "node7", [User(name="ops", ssh_keys=(KEY,))], [], {})
    (server[0] / "seed").write_bytes(disk.make_seed(documents))
    variables = secure_variables(db[1], tmp_path / "vars.fd")
    with (tmp_path / "disk.raw").open("wb") as file:
        file.truncate(2 << 30)
    command = qemu(
        *words(f"-drive if=pflash,format=raw,unit=0,readonly=on,file={OVMF}/OVMF_CODE_4M.fd"),
        *words(f"-drive if=pflash,format=raw,unit=1,file={variables}"),
        *words(f"-drive if=none,id=d0,format=raw,file={tmp_path}/disk.raw,cache=unsafe"),
        *words("-device nvme,serial=T,drive=d0,bootindex=1 -device virtio-scsi-pci"),
        *words(f"-drive if=none,id=c0,media=cdrom,format=raw,readonly=on,file={site.agent_iso}"),
        *words("-device scsi-cd,drive=c0,bootindex=2"),
    )
    lines = console(command, "STAND-IN grown", tmp_path / "console.log")
    assert any("STAND-IN ramdisk True" in line for line in lines)
    facts = json.loads(next(line for line in lines if "STAND-IN ready" in line).split("ready ", 1)[1])
    assert facts["secure_boot"] == 1
    assert facts["hostname"] == "node7"
    assert facts["first_boot"] == {"instance": "i-1", "hostname": "node7", "users": ["ops"], "problems": []}
    assert facts["keys"] == f"{KEY}\n"
    assert facts["root_locked"] is True
    assert facts["host_keys"] == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]
    assert int(lines[-1].split()[-1]) > 1.7 * (1 << 30)


def test_a_changed_second_stage_is_not_run(base: BaseArtifacts, server: tuple[Path, int], tmp_path: Path) -> None:
    directory, port = server
    changed = bytearray(base.stage2.read_bytes())
    changed[-5000] ^= 1
    (directory / "changed").write_bytes(changed)
    part = agent_ramdisk.SitePart("lab", "https://unused:1", f"http://{HOST}:{port}/changed", "ab" * 32, b"", b"")
    initrd = tmp_path / "initrd"
    initrd.write_bytes(base.initrd.read_bytes() + part.archive())
    cmdline = agent_ramdisk.CMDLINE[base.kernel.flavour]
    direct = ["-kernel", str(base.kernel.image), "-initrd", str(initrd), "-append", cmdline]
    lines = console(qemu(*direct), "attempt 2 of 20", tmp_path / "console.log", 120)
    assert sum("REFUSED" in line and "ab" * 32 in line for line in lines) == 2
    assert not any("STAND-IN" in line or "starting the agent" in line for line in lines)


def test_the_private_key_is_in_no_file_of_the_site(site: SiteArtifacts, db: tuple[bytes, bytes]) -> None:
    numbers = serialization.load_pem_private_key(db[0], None).private_numbers()  # type: ignore[union-attr]
    secrets = (db[0], numbers.p.to_bytes(128, "big"), numbers.q.to_bytes(128, "big"))
    for path in site.agent_efi.parent.iterdir():
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path
