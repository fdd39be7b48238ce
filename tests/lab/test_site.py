"""The whole on real firmware, TPM, Redfish and disks: the proof, and what must not pass."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from lab_traces import traces
from site_rig import FREEHOLD, SiteRig, site_rig

from freehold.interfaces.cli.prove import lab_name
from freehold.orchestration.opening import open_vault
from freehold.provisioning.images import agent_ramdisk, manifest, uki
from freehold.provisioning.images.kernel import Flavour
from freehold.root_of_trust.keys import SiteKeys

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1500)]


def test_prove_goes_from_a_blank_disk_to_a_certificate_with_nothing_leaving(tmp_path: Path) -> None:
    command = [*FREEHOLD, "prove", "--dir", str(tmp_path / "prove"), "-o", "json"]
    lab = tmp_path / "prove" / "lab"
    before = traces(lab_name(tmp_path / "prove"), lab)
    kill_a_proof_while_its_machine_runs(command, lab)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    answer = json.loads(done.stdout)
    verdicts = {each["number"]: each["verdict"] for each in answer["report"]}
    assert list(verdicts.values()) == ["PASS"] * 7
    assert (answer["egress"]["packets"], answer["egress"]["lookups"]) == (0, 0)
    assert answer["egress"]["control_packets"] > 0
    assert traces(lab_name(tmp_path / "prove"), lab) == before
    bundle = Path(answer["bundle"])
    verified = [*FREEHOLD, "verify", str(bundle)]
    assert subprocess.run(verified, capture_output=True, check=False).returncode == 0
    assert checked_quotes(bundle, tmp_path) >= 4
    victim = sorted(path for path in bundle.rglob("*") if path.is_file())[-1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    refused = subprocess.run(verified, capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    assert victim.name in refused.stdout + refused.stderr


def kill_a_proof_while_its_machine_runs(command: list[str], lab: Path) -> None:
    """kill -9: nothing of it can tidy up. The next run has to."""
    asked = [*FREEHOLD, "lab", "status", "--dir", str(lab), "-o", "json"]

    def running() -> bool:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        return done.returncode == 0 and json.loads(done.stdout)["servers"][0]["power"] == "On"

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 300
        while not running():
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        first.kill()


def checked_quotes(bundle: Path, work: Path) -> int:
    """How many attestations of the bundle other people's tools verify again."""
    shown = [*FREEHOLD, "evidence", "log", "--bundle", str(bundle), "--limit", "1000", "-o", "json"]
    items = json.loads(subprocess.run(shown, capture_output=True, text=True, check=True).stdout)["items"]
    claims = [each["predicate"] for each in items if each["kind"] == "attestation"]
    for claim in claims:
        ak, quote, signature = (str(bundle / "artifacts" / claim["artifacts"][n]) for n in ("ak", "quote", "signature"))
        pem = work / "ak.pem"
        pem.write_bytes(subprocess.check_output(["tpm2_print", "-t", "TPMT_PUBLIC", "-f", "pem", ak]))
        command = ["tpm2_checkquote", "-u", str(pem), "-m", quote, "-s", signature, "-q", claim["qualifying_data"]]
        subprocess.run(command, check=True, capture_output=True)
    return len(claims)


def wrong_agent(rig: SiteRig) -> bytes:
    """An agent that our own db key signed, but not the one that was promised: another command line."""
    vault = open_vault(rig.state)
    keyring = SiteKeys.load(rig.state, vault).secure_boot
    sections = uki.sections_of(rig.artifact("agent.efi").read_bytes())
    cmdline = agent_ramdisk.CMDLINE[Flavour.CLOUD] + " wrong=1"
    unsigned = uki.assemble(sections[".linux"], cmdline, sections[".osrel"], sections[".initrd"])
    return keyring.sign(unsigned)


def test_wrong_image_tampering_kills_and_a_drive_that_lies(tmp_path: Path) -> None:
    with site_rig(tmp_path, "site") as rig:
        rig.declare()
        rig.serve()

        # The controller is killed while the agent boots for the first time, and goes on.
        rig.wait("boot", lambda status: "agent" in status.get("waiting_for", ""))
        rig.kill()
        rig.serve()
        rig.found_operators()
        rig.approve_firmware()
        rig.wait_state("available")

        # A validly signed image that is not the promised one boots, and is quarantined for what it measured.
        iso = rig.artifact("agent.iso")
        right = iso.read_bytes()
        uki.make_iso(wrong_agent(rig), iso)
        rig.declare(assigned=["server-1"])
        status = rig.wait_state("quarantined")
        assert "PCR 4" in status["reason"], status["reason"]
        assert "PCR 11" in status["reason"], status["reason"]
        iso.write_bytes(right)
        rig.freehold("release", "server-1", "--reason", "the right medium is back", "--wait", "--timeout", "60")

        # An image with one changed byte is refused, with the chunk named; the server does not go on.
        rig.wait_state("provisioning")
        image = rig.artifact("os.raw")
        chunk = tamper(rig, image) // manifest.CHUNK_SIZE
        rig.wait("refusal", lambda _: any("chunk" in event and "wrong" in event for event in rig.events("server-1")))
        said = next(event for event in rig.events("server-1") if "chunk" in event and "wrong" in event)
        assert f"chunk {chunk} at byte" in said, said
        assert rig.status()["state"] == "provisioning"
        tamper(rig, image)

        # Killed while it writes, and again while the OS starts.
        rig.wait("writing", lambda status: status.get("step") == "write_image" and not status.get("retry_at"))
        rig.kill()
        rig.serve()
        rig.wait_state("attesting")
        rig.kill()
        rig.serve()
        rig.wait_state("active")
        key = str(rig.lab / "ssh-key")
        said = rig.in_lab("ssh", "server-1", "--user", "ops", "--identity", key, "--", "hostname").stdout
        assert said.strip() == "server-1"

        # A person asks for an attestation, and reads the verdict in the log.
        words = rig.freehold("attest", "server-1", "--wait", "--timeout", "120", "-o", "json").stdout
        proved = json.loads(words.splitlines()[-1])["attestation"]
        assert (proved["trusted"], proved["mode"], proved["pcrs"]["4"]["status"]) == (True, "os", "matched")
        assert proved["attested_at"] == rig.attested()

        # A drive that reports an erase that it did not do: never back to the pool.
        rig.in_lab("fault", "drive-skips-erase", "server-1", "on")
        rig.freehold("decommission", "server-1", "--yes", "--reason", "test")
        status = rig.wait_state("quarantined", seconds=600)
        assert "not proven clean" in status["reason"]
        assert "canaries are still readable" in status["reason"]
        assert not any("decommissioning -> available" in event for event in rig.events("server-1"))


def tamper(rig: SiteRig, image: Path) -> int:
    """Change one byte of the image that is served, or change it back; its offset."""
    answer = rig.in_lab("fault", "-o", "json", "tampered-image", str(image)).stdout
    return int(json.loads(answer)["offset"])


def test_a_bmc_that_is_set_back_is_a_stranger_until_a_person_accepts_its_key(tmp_path: Path) -> None:
    with site_rig(tmp_path, "stranger") as rig:
        rig.declare()
        rig.serve()
        rig.found_operators()
        status = rig.wait("certificate", lambda status: status.get("facts", {}).get("bmc_certificate"), seconds=600)
        rows = json.loads(rig.freehold("pki", "list", "-o", "json").stdout)["items"]
        assert [row["purpose"] for row in rows] == ["agent CA", "BMC CA", "controller", "BMC"]
        assert rows[-1]["serial"] == status["facts"]["bmc_certificate"]["serial"]

        rig.in_lab("fault", "factory-certificate", "server-1")
        status = rig.wait_state("quarantined")
        assert "is not recognised: its certificate (key " in status["reason"], status["reason"]
        assert "nothing was sent to it" in status["reason"]
        key = status["reason"].partition("(key ")[2][:64]
        why = ("--reason", "set back on purpose", "--wait", "--timeout", "60")
        asked = rig.freehold("release", "server-1", "--accept-bmc-key", key, "--reason", "set back", "-o", "json")
        request = json.loads(asked.stdout)["request"]
        assert rig.freehold("release", "server-1", "--approved", request, check=False).returncode == 1
        rig.sign(request)
        rig.freehold("release", "server-1", "--approved", request, *why)
        status = rig.wait_state("preparing")
        assert status["facts"]["bmc_identity"] == key
        assert "bmc_certificate" not in status["facts"]
        rig.approve_firmware()
        rig.wait_state("available")
        rig.wait("new certificate", lambda status: status["facts"].get("bmc_certificate"))
