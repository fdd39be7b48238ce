"""Runs every command of docs/verify-evidence.md as it stands there."""

import base64
import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from freehold.evidence import Ed25519Signer, EvidenceLog, Predicate, Statement, Subject, export

PAGE = (Path(__file__).parents[2] / "docs/verify-evidence.md").read_text()
SIGNER = Ed25519Signer.generate()
EVENT_LOG = Path(__file__).parents[1] / "root_of_trust/attest_data/ovmf-secure-boot.log"

# A quote by swtpm 0.7.1 over PCR 0, 1, 2 and 7; qualifying data is SHA-256("nonce").
AK = base64.b64decode(
    "ACMACwAFAHIAAAAQABgACwADABAAIBMUcXFH85aZMe/oNQymdSep1UFdJnIAfuUoJk93p0plACDde2vIP73hE2mtEBNp+7yVK03Q"
    "SjeLxoRjGsWIt2mTkQ=="
)
QUOTE = base64.b64decode(
    "/1RDR4AYACIACzuk/85xTnsno6E0rq3z9H/3EPgMyp9iqBetTOG9EuhaACB4N3tSV1e0lEJ/iQFPl9eZKPOTjRTrUeIPtd7Jg06z"
    "BAAAAAAAAATTAAAAAQAAAAABIBkQIwAWNjYAAAABAAsDhwAAACA4cjouXooXqnlQ3ACCCZROiY9pp70QojyDnTQek1/Vyg=="
)
SIGNATURE = base64.b64decode(
    "ABgACwAgnDqqZMnciv4gO0mj6VxyXr3S2EctPluYDgq5e4HH+YIAIO+0hgaG7RB2sdYZlB2ne3vHGuHR3Byw5Yf+m/FfKL9G"
)


def blocks(kind: str = "") -> str:
    found = re.findall(rf"^```sh{' ' + kind if kind else ''}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found
    return "\n".join(found)


def run(script: str, folder: Path, **names: str) -> subprocess.CompletedProcess[str]:
    setting = "".join(f"{name}={value}\n" for name, value in names.items())
    command = ["bash", "-euo", "pipefail", "-c", setting + script]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    kinds = [Predicate.TRANSITION] * 270 + [Predicate.DECOMMISSION_CERTIFICATE, Predicate.EGRESS]
    with EvidenceLog.open_for_writing(tmp_path / "log", SIGNER, "freehold.dev/site/test") as log:
        log.append_all(
            [Statement.claim(kind, [Subject.of_name("server/r1")], {"ä": n}) for n, kind in enumerate(kinds)]
        )
        artifacts = {"r1/ak": AK, "r1/quote": QUOTE, "r1/signature": SIGNATURE}
        return export(log, tmp_path / "run-1", SIGNER, report={}, artifacts=artifacts, public_keys={})


@pytest.mark.host
@pytest.mark.slow
def test_the_documented_commands_accept_a_bundle(bundle: Path) -> None:
    # two statements stand for 270: an openssl each would take seconds
    script = blocks().replace('"$work"/entry-*.json', '"$work"/entry-00026[89].json "$work"/entry-00027*.json')
    done = run(script, bundle)
    assert done.returncode == 0, done.stderr
    assert SIGNER.key_id in done.stdout
    assert "272 entries, root " in done.stdout
    assert "https://freehold.dev/decommission-certificate/v1\tserver/r1" in done.stdout
    assert "entry 270 of 272 is certificates/270.json" in done.stdout
    assert "refused" not in done.stdout + done.stderr


@pytest.mark.host
@pytest.mark.parametrize(
    "name",
    [
        "bundle.json",
        "report.json",
        "log/checkpoint",
        "log/tile/entries/000",
        "certificates/270.json",
        "artifacts/r1/quote",
    ],
)
def test_the_documented_commands_refuse_a_changed_byte(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    done = run(blocks(), bundle)
    assert done.returncode != 0
    assert "entries, root" not in done.stdout


@pytest.mark.host
def test_the_documented_commands_refuse_another_file(bundle: Path) -> None:
    (bundle / "extra").symlink_to("report.json")
    done = run(blocks(), bundle)
    assert done.returncode != 0
    assert "> extra" in done.stdout


@pytest.mark.host
def test_the_documented_tpm_commands_check_a_quote_and_an_event_log(bundle: Path, tmp_path: Path) -> None:
    names = {"ak": "artifacts/r1/ak", "quote": "artifacts/r1/quote", "signature": "artifacts/r1/signature"}
    for nonce, code in ((b"nonce", 0), (b"another", 1)):
        qualification = hashlib.sha256(nonce).hexdigest()
        done = run(blocks("tpm"), bundle, work=str(tmp_path), qualification=qualification, **names)
        assert (done.returncode == 0) == (code == 0), done.stderr
    done = run(blocks("eventlog"), bundle, event_log=str(EVENT_LOG))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +7 +: 0x[0-9a-f]{64}$", done.stdout, re.MULTILINE)
