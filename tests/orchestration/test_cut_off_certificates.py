"""The certificate of a BMC is changed, and the change is cut off at every point, by a kill of the controller, by a
reboot of the BMC or by a vault that is sealed: it is never a stranger, and ends with a certificate of the site that the
log knows."""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cut_off import Course, Cut, Life, cut_off_everywhere, go_on, kept, prepare, wired
from test_cut_off_credentials import certified, ours_alone, owned

from freehold.model.status import BmcCertificate, Facts, ServerState
from freehold.orchestration.steps.certificates import LOOK_AGAIN
from freehold.out_of_band import certificates
from freehold.root_of_trust import authorities, pki

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("wired")]
__all__ = ["wired"]
LONG_AGO = 1_000_000_000.0
REPLACE = "POST /redfish/v1/CertificateService/Actions/CertificateService.ReplaceCertificate"
IN_ALL = {
    Cut.KILL: f"after {REPLACE}",
    Cut.REBOOT: f"after {REPLACE}",
    Cut.FLAP: "before GET /redfish/v1/CertificateService",
    Cut.SEAL: "before vault get site/keys/bmc-ca",
}


async def known_by_the_ca(life: Life) -> None:
    """What the BMC serves was issued by the site, was recorded when issued and when seen, and is what counts."""
    pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", life.course.port))
    served = x509.load_pem_x509_certificate(pem.encode())
    served.verify_directly_issued_by(authorities.bmc_ca(life.site.vault).certificate)
    facts = (await life.view()).facts
    assert facts.bmc_certificate is not None
    assert (facts.bmc_certificate.sha256, facts.bmc_certificate_pending) == (pki.sha256(served), None)
    assert pki.sha256(served) in [claim["sha256"] for claim in life.claims("certificate")]
    assert life.claims("bmc-identity")[-1]["sha256"] == pki.sha256(served)
    await ours_alone(life)


def waits(course: Course) -> None:
    """It serves a certificate that it took after its next start only."""
    course.hardware.faults.certificate_waits = True


def at_once(course: Course) -> None:
    """It serves it from the next connection on."""


@pytest.mark.parametrize(
    ("cut", "serves"),
    [(cut, serves) for cut in Cut for serves in (at_once, waits) if (cut, serves) != (Cut.SEAL, waits)],
)  # when the BMC serves it is nothing to the vault
async def test_a_first_certificate_cut_off_anywhere_comes_and_the_bmc_is_never_a_stranger(
    cut: Cut, serves: Callable[[Course], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "APPLY_PATIENCE", 1.5 * LOOK_AGAIN)  # two looks are as good as a dozen
    taken_over = partial(go_on, origin=await kept("declared", prepare), done=owned)
    points = await cut_off_everywhere(
        cut, await kept("taken-over", taken_over), tmp_path, certified, known_by_the_ca, serves
    )
    assert IN_ALL[cut] in points
    assert ("after POST /redfish/v1/Managers/1/Actions/Manager.Reset" in points) == (
        serves is waits and cut in (Cut.KILL, Cut.REBOOT)
    )


def ending(facts: Facts) -> BmcCertificate:
    assert facts.bmc_certificate is not None
    return msgspec.structs.replace(facts.bmc_certificate, not_before=0.0, not_after=LONG_AGO)


def renewed(facts: Facts) -> bool:
    return facts.bmc_certificate is not None and facts.bmc_certificate.not_after > LONG_AGO


@pytest.mark.parametrize("cut", list(Cut))
async def test_a_renewal_cut_off_anywhere_ends_and_the_bmc_is_never_a_stranger(cut: Cut, tmp_path: Path) -> None:
    old = {"state": ServerState.AVAILABLE, "bmc_certificate": ending}
    due = partial(go_on, origin=await kept("declared", prepare), done=certified, **old)
    points = await cut_off_everywhere(cut, await kept("renewal-due", due), tmp_path, renewed, known_by_the_ca)
    assert IN_ALL[cut] in points
