# See blockdev.py for why os and not pathlib.
"""What the controller may order: a table from kind to function. Modules are imported when an order needs them."""

import os

from freehold.agent.errors import AgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Args = dict[str, Any]
    Progress = Callable[[int, int, str], None]


class Context:
    """Where orders act: the root of the file system and the agent's configuration directory in it."""

    def __init__(self, root: str, progress: "Progress") -> None:
        self.root, self.progress = root, progress

    @property
    def image_key(self) -> str:
        """The site's image key, PEM."""
        return os.path.join(self.root, "etc/freehold/image.pub")


def take_inventory(_: "Args", context: Context) -> "Args":
    """{} -> see `inventory.collect`."""
    from freehold.agent import inventory

    if not os.path.isdir(os.path.join(context.root, "sys/class/tpm/tpm0")):
        return inventory.collect(context.root)
    from freehold.agent.tpm import DeviceTransport

    name = "tpmrm0" if os.path.exists(os.path.join(context.root, "dev/tpmrm0")) else "tpm0"
    transport = DeviceTransport(os.path.join(context.root, "dev", name))
    try:
        return inventory.collect(context.root, transport.exchange)
    finally:
        transport.close()


def write_image(args: "Args", context: Context) -> "Args":
    """{device_serial, image_url, manifest_envelope | manifest_url} -> see `images.write_image`."""
    from hashlib import sha256

    from freehold.agent import images
    from freehold.agent.manifest import verify_envelope

    envelope = args.get("manifest_envelope") or _fetch_json(field(args, "manifest_url", str))
    manifest, payload = verify_envelope(envelope, context.image_key)
    done = images.write_image(
        field(args, "device_serial", str), manifest, field(args, "image_url", str), context.progress, root=context.root
    )
    return {**done, "manifest_sha256": sha256(payload).hexdigest()}


def write_seed(args: "Args", context: Context) -> "Args":
    """{device_serial, partition_label, data (base64), ticket (true, or absent)}: the data becomes the start of the
    partition. With `ticket` a fresh one for the OS becomes its end; its SHA-256 is `ticket_sha256` of the answer."""
    import base64
    import binascii

    from freehold.agent.blockdev import BlockDevice, claim_disk
    from freehold.agent.partitions import write_to_partition

    try:
        data = base64.b64decode(field(args, "data", str), validate=True)
    except binascii.Error as error:
        raise bad_argument("data", "base64") from error
    name, path = claim_disk(field(args, "device_serial", str), context.root)
    tail, told = b"", {}
    if args.get("ticket") is True:
        from freehold.agent import ticket

        tail, digest = ticket.new()
        told = {"ticket_sha256": digest}
    with BlockDevice(path) as device:
        done = write_to_partition(device, field(args, "partition_label", str), data, tail)
    return {"device": name, **done, **told}


def set_boot_entry(args: "Args", context: Context) -> "Args":
    """{device_serial, label, partition_label, loader} -> see `efi.set_boot_entry`."""
    from freehold.agent import efi
    from freehold.agent.blockdev import BlockDevice, find_disk
    from freehold.agent.partitions import find_partition

    name = find_disk(field(args, "device_serial", str), context.root)
    with BlockDevice(os.path.join(context.root, "dev", name), writable=False) as device:
        partition = find_partition(device, field(args, "partition_label", str))
    variables = efi.EfiVariables(context.root)
    return efi.set_boot_entry(variables, field(args, "label", str), partition, field(args, "loader", str))


def sanitize(args: "Args", context: Context) -> "Args":
    """{device_serial, allowed} -> see `sanitize.sanitize`."""
    from freehold.agent import sanitize as module

    serial, allowed = field(args, "device_serial", str), field(args, "allowed", list)
    return module.sanitize(serial, allowed, context.progress, root=context.root)


def plant_canary(args: "Args", context: Context) -> "Args":
    """{device_serial, seed, count} -> see `canaries.plant_canary`."""
    from freehold.agent import canaries

    serial, seed, count = field(args, "device_serial", str), field(args, "seed", str), field(args, "count", int)
    return canaries.plant_canary(serial, seed, count, root=context.root)


def verify_sanitized(args: "Args", context: Context) -> "Args":
    """{device_serial, seed, samples, sample_bytes, canaries} -> see `canaries.verify_sanitized`."""
    from freehold.agent import canaries

    return canaries.verify_sanitized(
        field(args, "device_serial", str), field(args, "seed", str), field(args, "samples", int),
        field(args, "sample_bytes", int), field(args, "canaries", list), root=context.root,
    )  # fmt: skip


def tpm_clear(_: "Args", context: Context) -> "Args":
    """{} -> {"cleared": true}, or false: there is none. The attestation key stays the same: it derives from the
    endorsement seed."""
    from freehold.agent.identity import open_tpm, tpm_device

    if tpm_device(context.root) is None:
        return {"cleared": False}
    with open_tpm(context.root) as tpm:
        tpm.clear()
    return {"cleared": True}


def acknowledge(_: "Args", __: Context) -> "Args":
    """reboot and poweroff: the result goes out first, the client acts after (`client.AFTERWARDS`)."""
    return {}


ORDERS: "dict[str, Callable[[Args, Context], Args]]" = {
    "inventory": take_inventory, "write_image": write_image, "write_seed": write_seed, "set_boot_entry": set_boot_entry,
    "sanitize": sanitize, "plant_canary": plant_canary, "verify_sanitized": verify_sanitized, "tpm_clear": tpm_clear,
    "reboot": acknowledge, "poweroff": acknowledge,
}  # fmt: skip


def execute(kind: str, args: "Args", context: Context) -> "Args":
    """`{"ok", "result", "error"}` of one order, whatever happens: a failure is an answer, not an end of the agent."""
    function = ORDERS.get(kind)
    try:
        if function is None:
            raise AgentError(
                f"unknown order {kind!r}", remedy="use an agent image of the same release as the controller"
            )
        return {"ok": True, "result": function(args, context), "error": None}
    except AgentError as error:
        failure = error.to_dict()
    except Exception as error:
        # The TPM's own errors carry `what` and `remedy` too; anything else is named by its type.
        what = getattr(error, "what", None) or f"order {kind} failed: {type(error).__name__}: {error}"
        remedy = getattr(error, "remedy", None) or "look at the server's serial console; the order may be given again"
        failure = {"what": str(what), "remedy": str(remedy)}
    return {"ok": False, "result": {}, "error": failure}


def field(args: "Args", name: str, kind: type) -> "Any":
    """An argument of exactly this type."""
    value = args.get(name)
    if type(value) is not kind:
        raise bad_argument(name, kind.__name__)
    return value


def bad_argument(name: str, wanted: str) -> AgentError:
    """The controller sent an order that cannot be carried out as it stands."""
    return AgentError(
        f"the order's argument {name!r} is missing or not {wanted}",
        remedy="use an agent image of the same release as the controller",
    )


def _fetch_json(url: str) -> "Args":
    import json

    from freehold.agent.wire import Connection, target_of

    connection = Connection(url)
    try:
        response = connection.request("GET", target_of(url))
        if response.status != 200 or response.length > 16 << 20:
            raise AgentError(
                f"{url}: HTTP {response.status}, {response.length} bytes",
                remedy="publish the image on the boot server again",
            )
        document = json.loads(response.read())
    except (OSError, ValueError) as error:
        raise AgentError(f"{url}: {error}", remedy="check the boot server and the provisioning network") from error
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise AgentError(f"{url} is not a DSSE envelope", remedy="publish the image on the boot server again")
    return document
