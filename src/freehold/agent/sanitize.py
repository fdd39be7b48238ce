# See blockdev.py for why os and not pathlib.
"""Erase a disk by the strongest technique that it offers and that policy allows. Success here proves nothing.

Drives report success and keep the data (seen: ATA security erase and SCSI format in QEMU). So the report carries the
exact command and its raw answer, and `canaries.verify_sanitized` decides. Techniques are those of IEEE 2883 and
NVMe Base 2.0 (Sanitize, Format NVM); what counts as Clear or Purge is the controller's policy.
"""

import os
import time

from freehold.agent.blockdev import (
    BLKDISCARD,
    BLKSECDISCARD,
    COPY_BYTES,
    BlockDevice,
    claim_disk,
    new_buffer,
    read_text,
)
from freehold.agent.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Progress = Callable[[int, int, str], None]
    Run = Callable[[Sequence[str]], tuple[int, bytes]]

SANITIZE_CRYPTO, SANITIZE_BLOCK = "nvme-sanitize-crypto-erase", "nvme-sanitize-block-erase"
FORMAT_CRYPTO, FORMAT_USER_DATA = "nvme-format-crypto-erase", "nvme-format-user-data-erase"
SECURE_DISCARD, DISCARD, OVERWRITE = "secure-discard", "discard", "overwrite"
TECHNIQUES = (SANITIZE_CRYPTO, SANITIZE_BLOCK, FORMAT_CRYPTO, FORMAT_USER_DATA, SECURE_DISCARD, DISCARD, OVERWRITE)
SANITIZE_POLL_S, SANITIZE_LIMIT_S = 5.0, 24 * 3600.0


def run_command(command: "Sequence[str]") -> tuple[int, bytes]:
    """(exit status, stdout and stderr together); 127 when the tool is not there."""
    import subprocess

    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    except FileNotFoundError:
        return 127, f"{command[0]} is not in the agent's image".encode()
    return done.returncode, done.stdout


def nvme_controller(name: str) -> str | None:
    """nvme0n1 -> nvme0; None for other disks."""
    head, separator, tail = name.rpartition("n")
    return head if separator and head.startswith("nvme") and head[4:].isdecimal() and tail.isdecimal() else None


def nvme_techniques(id_ctrl: "dict[str, Any]") -> list[str]:
    """What an Identify Controller structure promises: SANICAP bits 0 and 1, OACS bit 1, FNA bit 2."""
    sanicap, oacs, fna = (int(id_ctrl.get(key, 0)) for key in ("sanicap", "oacs", "fna"))
    offers = {SANITIZE_CRYPTO: sanicap & 1, SANITIZE_BLOCK: sanicap & 2}
    offers |= {FORMAT_CRYPTO: oacs & 2 and fna & 4, FORMAT_USER_DATA: oacs & 2}
    return [technique for technique, offered in offers.items() if offered]


def offered_techniques(name: str, root: str, run: "Run") -> list[str]:
    """In order of strength. Overwrite is always there."""
    offers: list[str] = []
    if controller := nvme_controller(name):
        import json

        status, output = run(["nvme", "id-ctrl", os.path.join(root, "dev", controller), "--output-format=json"])
        if status == 0:
            offers += nvme_techniques(json.loads(output))
    if int(read_text(os.path.join(root, "sys/block", name, "queue/discard_max_bytes")) or 0) > 0:
        offers += [SECURE_DISCARD, DISCARD]
    return [*offers, OVERWRITE]


def sanitize(
    serial: str, allowed: "Sequence[str]", progress: "Progress", *, root: str = "/", run: "Run" = run_command
) -> "dict[str, Any]":
    """Try offered and allowed techniques from the strongest down until one reports success.

    Result: {device, device_serial, disk_bytes, offered, technique, command, status, output, started, ended, attempts};
    times are seconds since 1970, `attempts` holds what failed before. AgentError when nothing worked.
    """
    if unknown := sorted(set(allowed) - set(TECHNIQUES)):
        raise AgentError(f"unknown sanitization technique {unknown[0]!r}", remedy=f"use one of {', '.join(TECHNIQUES)}")
    name, path = claim_disk(serial, root)
    offered = offered_techniques(name, root, run)
    attempts: list[dict[str, Any]] = []
    for technique in (one for one in offered if one in allowed):
        started = time.time()
        command, status, output = _apply(technique, name, path, root, run, progress)
        attempt = {
            "technique": technique, "command": command, "status": status, "output": output[:4000],
            "started": round(started, 3), "ended": round(time.time(), 3),
        }  # fmt: skip
        if status == 0:
            with BlockDevice(path) as device:
                device.drop_cache()
                size = device.size
            facts = {"device": name, "device_serial": serial, "disk_bytes": size, "offered": offered}
            return {**facts, **attempt, "attempts": attempts}
        attempts.append(attempt)
    tried = "; ".join(f"{one['technique']}: status {one['status']}, {one['output'][:200]}" for one in attempts)
    raise AgentError(
        f"disk {serial} was not sanitized: {tried or f'it offers {offered}, allowed are {sorted(allowed)}'}",
        remedy="allow another technique in the sanitization policy, or destroy the drive",
    )


def _apply(technique: str, name: str, path: str, root: str, run: "Run", progress: "Progress") -> tuple[str, int, str]:
    """(exact command, raw status, raw output)."""
    if technique in (SANITIZE_CRYPTO, SANITIZE_BLOCK):
        controller = os.path.join(root, "dev", nvme_controller(name) or "")
        return _nvme_sanitize(controller, 4 if technique == SANITIZE_CRYPTO else 2, run, progress)
    if technique in (FORMAT_CRYPTO, FORMAT_USER_DATA):
        command = ["nvme", "format", path, f"--ses={2 if technique == FORMAT_CRYPTO else 1}", "--force"]
        status, output = run(command)
        return " ".join(command), status, output.decode(errors="replace").strip()
    with BlockDevice(path) as device:
        try:
            if technique == OVERWRITE:
                _overwrite(device, progress)
                return f"write 0x00 to {path}, {device.size} bytes, 1 pass", 0, ""
            request = BLKSECDISCARD if technique == SECURE_DISCARD else BLKDISCARD
            command_text = (
                f"ioctl({path}, {'BLKSECDISCARD' if technique == SECURE_DISCARD else 'BLKDISCARD'}, 0, {device.size})"
            )
            try:
                device.ioctl_range(request, 0, device.size)
            except OSError as error:
                return command_text, error.errno or 1, error.strerror or str(error)
            return command_text, 0, ""
        finally:
            device.flush()


def _nvme_sanitize(controller: str, action: int, run: "Run", progress: "Progress") -> tuple[str, int, str]:
    """Start, then poll the Sanitize Status log (NVMe Base 2.0, 5.16.1.25) until it is no longer in progress."""
    command = ["nvme", "sanitize", controller, f"--sanact={action}"]
    status, output = run(command)
    text = output.decode(errors="replace").strip()
    if status != 0:
        return " ".join(command), status, text
    log_command = ["nvme", "get-log", controller, "--log-id=0x81", "--log-len=512", "--raw-binary"]
    deadline = time.monotonic() + SANITIZE_LIMIT_S
    while time.monotonic() < deadline:
        status, log = run(log_command)
        if status != 0 or len(log) < 4:
            return " ".join(command), status or 1, f"{text}; status log unreadable: {log[:200]!r}"
        done, state = int.from_bytes(log[:2], "little"), int.from_bytes(log[2:4], "little")
        if state & 7 != 2:  # 1, 4: completed; 0: never started; 3: failed
            return (
                " ".join(command),
                0 if state & 7 in (1, 4) else 1,
                f"{text}; SSTAT={state:#06x} log={log[:32].hex()}",
            )
        progress(done, 65536, "sanitize")
        time.sleep(SANITIZE_POLL_S)
    return " ".join(command), 1, f"{text}; still in progress after {SANITIZE_LIMIT_S:.0f} s"


def _overwrite(device: BlockDevice, progress: "Progress") -> None:
    """Real zeros by real writes: Write Zeroes might only unmap."""
    zeros, offset = memoryview(new_buffer(COPY_BYTES)), 0
    while offset < device.size:
        step = min(COPY_BYTES, device.size - offset)
        device.write(zeros[:step], offset)
        offset += step
        progress(offset, device.size, "sanitize")
