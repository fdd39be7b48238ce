"""X.509 for the site. Pure: keys and the time come in, certificates go out.

    root (P-384, offline)          made and used in a ceremony only; `freehold.root_of_trust.ceremony`
      BMC CA, agent CA             path length 0, critical name constraints: each speaks for its own addresses only
        a BMC, the controller      TLS server certificates
        an agent                   TLS client certificate of one session, by the agent CA
    Secure Boot PK, KEK, db        self-signed: firmware builds no chains

A site that held no ceremony has the two issuing CAs self-signed, under the same names and keys: a certificate of the
root takes their place later, and everything that they have issued stays valid. Another key for a CA: `succession`.
"""

from freehold.root_of_trust.pki.authorities import (
    agent_ca,
    authority_request,
    bmc_ca,
    is_issued_by,
    is_self_signed,
    issue_authority,
    issuer_key_id,
    key_id,
    networks,
    requested_zone,
    require_authority,
    root_ca,
    self_signed_authority,
)
from freehold.root_of_trust.pki.building import (
    Address,
    CertificateError,
    Network,
    PrivateKey,
    PublicKey,
    der,
    needs_renewal,
    pem,
    require_zone,
    sha256,
    spki_sha256,
    utc_now,
    zone,
)
from freehold.root_of_trust.pki.leaves import (
    addresses,
    agent_certificate,
    agent_key,
    bmc_certificate,
    claim,
    controller_certificate,
    secure_boot_certificate,
    served_addresses,
)
from freehold.root_of_trust.pki.revocation import ROOT_CRL_LIFETIME, is_stale, listed, revocation_list, revoked_serials

__all__ = [
    "ROOT_CRL_LIFETIME",
    "Address",
    "CertificateError",
    "Network",
    "PrivateKey",
    "PublicKey",
    "addresses",
    "agent_ca",
    "agent_certificate",
    "agent_key",
    "authority_request",
    "bmc_ca",
    "bmc_certificate",
    "claim",
    "controller_certificate",
    "der",
    "is_issued_by",
    "is_self_signed",
    "is_stale",
    "issue_authority",
    "issuer_key_id",
    "key_id",
    "listed",
    "needs_renewal",
    "networks",
    "pem",
    "requested_zone",
    "require_authority",
    "require_zone",
    "revocation_list",
    "revoked_serials",
    "root_ca",
    "secure_boot_certificate",
    "self_signed_authority",
    "served_addresses",
    "sha256",
    "spki_sha256",
    "utc_now",
    "zone",
]
