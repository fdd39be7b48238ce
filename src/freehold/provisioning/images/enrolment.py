"""The enrolment image, for servers whose BMC cannot write the Secure Boot databases: a UKI that writes them itself.

It is the agent's kernel and ramdisk with another `/init`, and the variables as authenticated updates (UEFI, 8.2.2). It
boots like the agent, by HTTP or from a medium, on firmware in setup mode. It is signed, so that it also starts where
it has done its work already, and then changes nothing. When all is written it turns the machine off, and only then.

Not systemd-boot, which can enrol keys too: that of Debian 12 does not know dbx.
"""

from datetime import datetime

from freehold.provisioning.images import cpio, uki
from freehold.root_of_trust.secure_boot import VARIABLE_VENDOR
from freehold.root_of_trust.secure_boot_generations import KeySet
from freehold.root_of_trust.secure_boot_keys import SecureBootKeyring
from freehold.root_of_trust.secure_boot_signing import Signer, authenticated_variable

NAMES = ("dbx", "db", "KEK", "PK")
"""In the order in which they are written: the PK ends setup mode."""

INIT = """#!/bin/sh
# Enrols the operator's Secure Boot keys, says on the console what it does, and turns the machine off when it is done.
say() { echo "freehold: $*"; }

mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
say "enrolment image started"
mount -t tmpfs run /run
while read module; do insmod "/$module" 2>/dev/null; done </etc/modules
variables=/sys/firmware/efi/efivars
mount -t efivarfs efivarfs $variables

holds() {  # VARIABLE CONTENT: behind the four bytes of its attributes
    [ -e "$1" ] && tail -c +5 "$1" | cmp -s - "$2"
}

while read name guid; do
    variable=$variables/$name-$guid
    holds "$variable" "/keys/$name.content" && { say "$name is as it should be"; continue; }
    # The kernel wants attributes and update in one write.
    { printf '\\047\\000\\000\\000'; cat "/keys/$name.update"; } >/run/update
    dd if=/run/update of="$variable" bs=1M 2>/run/error || say "$name: $(head -n 1 /run/error)"
    holds "$variable" "/keys/$name.content" && { say "$name is written"; continue; }
    say "FAILED: the firmware does not take $name. Clear all Secure Boot keys in its set-up, and boot this again"
    while :; do sleep 3600; done
done </keys/order
say "Secure Boot keys are enrolled: power off"
sync
poweroff -f
"""


def enrolment_image(agent: bytes, keys: KeySet, pk: Signer, kek: Signer, at: datetime) -> bytes:
    """The unsigned UKI that enrols `keys`, made of the agent's. `pk` and `kek` are those of the same generation; `at`:
    the timestamp of the variables."""
    sections, variables = uki.sections_of(agent), keys.variables()
    content = {"dbx": variables.dbx, "db": variables.db, "KEK": variables.kek, "PK": variables.pk}
    wanted = [name for name in NAMES if content[name]]
    files = {"keys/order": "".join(f"{name} {VARIABLE_VENDOR[name]}\n" for name in wanted).encode()}
    for name in wanted:
        signer = pk if name in ("PK", "KEK") else kek
        files[f"keys/{name}.content"] = content[name]
        files[f"keys/{name}.update"] = authenticated_variable(name, content[name], signer, at)
    ours = cpio.archive([cpio.file("init", INIT.encode(), 0o755), *(cpio.file(*each) for each in files.items())])
    cmdline = sections[".cmdline"].rstrip(b"\0").decode()
    return uki.assemble(sections[".linux"], cmdline, sections[".osrel"], cpio.padded(sections[".initrd"]) + ours)


def signed_enrolment_image(agent: bytes, keyring: SecureBootKeyring, number: int, at: datetime) -> bytes:
    """The UKI that enrols generation `number`, signed as everything is that the site boots."""
    generation = keyring.generation(number)
    with keyring.signers(generation.pk, generation.kek) as (pk, kek):
        unsigned = enrolment_image(agent, keyring.key_set(number), pk, kek, at)
    return keyring.sign(unsigned)
