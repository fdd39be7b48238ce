"""Revoked images that go on running: a server keeps its own generation of Secure Boot keys while an OS is on it, and
attests under these. What the site's newest keys would not start is therefore said of each server that runs it. Pure.
"""

import dataclasses

from freehold.model.findings import Finding, Severity
from freehold.orchestration.measurements import REVOKED, BootedImage
from freehold.orchestration.view import ServerView
from freehold.root_of_trust.attestation.appraise import Verdict
from freehold.root_of_trust.secure_boot_generations import KeySet

UNCHECKED = "revocations-unchecked"


def revoked(server: str, image: BootedImage | None, newest: KeySet) -> Finding | None:
    """What is wrong with the image that `server` runs; None: the newest keys start it too. An image that is not kept
    here cannot be judged, and that is a finding as well."""
    if image is None:
        read = "its image's digests are in its record, and no build that is kept has them"
        why = "the build that it runs is not kept here, so nobody can say whether it is revoked"
    elif (refusal := image.refused_by(newest)) is not None:
        read = f"Authenticode digest {image.authenticode.hex()}, held against keys of generation {newest.generation}"
        why = f"it runs {image.name}, which the site's newest Secure Boot keys refuse: {refusal}"
    else:
        return None
    return Finding(
        severity=Severity.CRITICAL,
        kind=REVOKED,
        subject=server,
        detail=why,
        remedy=f"deploy it anew: `freehold decommission {server}`; until then it attests under the keys that it has",
        evidence=read,
    )


def in_dbx(image: BootedImage | None, newest: KeySet) -> str | None:
    """The digest (hex) by which somebody revoked just this image. One whose key has left db is refused as well, but
    nobody has said that it is bad: it is a finding, and no more."""
    return image.authenticode.hex() if image is not None and image.authenticode in newest.dbx else None


def quarantines(server: str, found: Finding) -> str:
    """Why policy does not let the server run on, and what a person does then."""
    return (
        f"{server}: {found.detail}; `freehold release {server} --to decommissioning` erases it, then it is assigned "
        "anew (a Policy with `revokedImage: report` would let it run on)"
    )


def with_revocation(verdict: Verdict, server: str, image: BootedImage, newest: KeySet) -> Verdict:
    """What is signed of an appraisal says so too, and nothing that shows it calls it clean. The quote itself is as it
    should be: the server runs what it was given. What becomes of it is the policy's business (`check_revocations`)."""
    found = revoked(server, image, newest)
    return verdict if found is None else dataclasses.replace(verdict, findings=(*verdict.findings, found))


def audited(server: ServerView, newest: int) -> tuple[Finding, ...]:
    """What an audit says: the finding that the server bears, or that its image was not yet held against the
    revocations of generation `newest`."""
    known = tuple(each for each in server.status.findings if each.kind == REVOKED)
    if known or server.facts.image is None or (server.facts.revocations_checked or 1) >= newest:
        return known
    unchecked = Finding(
        severity=Severity.WARNING,
        kind=UNCHECKED,
        subject=server.name,
        detail=f"nobody has held its OS image against generation {newest} of the Secure Boot keys yet",
        remedy="run `freehold serve`: it does so within seconds",
        evidence=f"checked against generation {server.facts.revocations_checked or 1}",
    )
    return (unchecked,)
