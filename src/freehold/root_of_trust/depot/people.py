"""Whether those who sign for the depot are those who approve for the site. Pure.

A site's operators and a depot's are kept apart: a depot may be founded on a machine that knows of no site. Where both
are known, each of the depot's people must be an operator of the site, by the same name and with the same key: one
person, one key. Otherwise somebody who left the site would go on to sign its firmware.
"""

from collections.abc import Iterator, Mapping

from freehold.evidence import PublicKey
from freehold.model.findings import Finding, Severity
from freehold.root_of_trust.depot.errors import PeopleRefused
from freehold.root_of_trust.operators import Operators

REMEDY = (
    "if they left, name today's operators with `freehold depot rotate --operator NAME=FILE …`; if they belong to the "
    "site, with `freehold operator replace`"
)


def people_findings(depot: Mapping[str, PublicKey], site: Operators) -> tuple[Finding, ...]:
    """A critical finding for each of the depot's people who is not an operator of the site. None, if the site has no
    operators: then there is nobody to compare with."""
    known = ", ".join(f"{name} (key {key.key_id})" for name, key in sorted(site.people.items()))
    return tuple(
        Finding(
            severity=Severity.CRITICAL,
            kind="depot-operator",
            subject=f"depot/{name}",
            detail=f"the depot counts signatures of {name} (key {depot[name].key_id}), {why}",
            remedy=REMEDY,
            evidence=f"root metadata of the depot: key {depot[name].key_id} of {name}; operators of the site: {known}",
        )
        for name, why in _strangers(depot, site)
    )


def require_site_operators(depot: Mapping[str, PublicKey], site: Operators) -> None:
    """Raises `PeopleRefused` for the first of the depot's people who is not an operator of the site."""
    for name, why in _strangers(depot, site):
        raise PeopleRefused(
            f"{name} (key {depot[name].key_id}) would sign for the depot, {why}",
            expected=f"operators of the site: {', '.join(sorted(site.people))}, each with the key that the site knows",
            remedy=REMEDY,
        )


def _strangers(depot: Mapping[str, PublicKey], site: Operators) -> Iterator[tuple[str, str]]:
    for name, key in sorted(depot.items()) if site.people else ():
        known = site.name_of(key.key_id)
        if known == name:
            continue
        if known is not None:
            yield name, f"whom the site knows as {known}"
        elif name in site.people:
            yield name, f"who has another key at the site: {site.people[name].key_id}"
        else:
            yield name, "who is no operator of the site"
