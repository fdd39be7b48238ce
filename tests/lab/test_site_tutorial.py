"""The README's tutorial, word for word: two servers, both to `active`, one given back while the other stays."""

import json
from pathlib import Path

import pytest
from lab_traces import traces
from site_rig import SiteRig

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1500)]

NAME = "tutorial"


def test_two_servers_become_active_and_one_is_given_back_while_the_other_stays(tmp_path: Path) -> None:
    rig = SiteRig(tmp_path, NAME, servers=2)
    before = traces(NAME, rig.lab)
    try:
        rig.in_lab("up", "--name", NAME, "--servers", "2")
        rig.serve()
        rig.freehold("apply", "-f", str(rig.lab / "inventory.yaml"))
        rig.found_operators()
        rig.approve_firmware()
        for name in ("server-1", "server-2"):
            rig.wait_state("active", name=name)
        assert table(rig).keys() == {"server-1", "server-2"}
        assert all("debian-12" in line and "172.30.1.1" in line for line in table(rig).values())

        key = str(rig.lab / "ssh-key")
        said = rig.in_lab("ssh", "server-1", "--user", "ops", "--identity", key, "--", "hostname; cat /etc/os-release")
        assert said.stdout.startswith("server-1\n")
        assert 'VERSION_ID="12"' in said.stdout

        rig.freehold("decommission", "server-2", "--yes", "--wait", "--timeout", "600")
        shown = table(rig)
        assert shown["server-1"].split()[1] == "active"
        assert shown["server-2"].split()[1] == "available"
        assert not any("active ->" in event for event in rig.events("server-1"))

        bundle, public = tmp_path / "bundle", str(rig.state / "keys" / "evidence.pub")
        rig.freehold("evidence", "export", "--out", str(bundle))
        verified = rig.freehold("verify", str(bundle), "--key", public, "-o", "json").stdout
        assert json.loads(verified)["key_pinned"]
        assert json.loads(verified)["certificates"] == 1
        for victim in (next(bundle.glob("certificates/*")), next(bundle.glob("artifacts/*"))):
            right = victim.read_bytes()
            victim.write_bytes(bytes([right[0] ^ 1]) + right[1:])
            refused = rig.freehold("verify", str(bundle), "--key", public, check=False)
            assert refused.returncode == 3
            assert victim.name in refused.stderr
            victim.write_bytes(right)
        rig.freehold("verify", str(bundle), "--key", public)
    finally:
        rig.kill()  # -9: `down` has to find what the controller could not take with it
        rig.in_lab("down")
        for path in rig.lab.rglob("*"):
            assert path.is_dir() or path.name.partition(".")[0] in ("inventory", "ssh-key", "alice", "bob", "carol")
    assert {**traces(NAME, rig.lab), "files": []} == before


def table(rig: SiteRig) -> dict[str, str]:
    """`get servers -o wide`, as a person reads it: name -> line."""
    header, *lines = rig.freehold("get", "servers", "-o", "wide").stdout.splitlines()
    assert header.split()[:3] == ["NAME", "STATE", "AGE"]
    return {line.split()[0]: line for line in lines}
