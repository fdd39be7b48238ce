"""Two of three: any two custodians open it, no one of them learns anything."""

import itertools
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given, settings
from hypothesis import strategies as st
from pki_support import CA_KEY, NOW, OOB, bmc_ca

from freehold.root_of_trust import ceremony, pki
from freehold.root_of_trust.custodians import CustodyRefused, Share, join, split

CHEAP = 2
PEOPLE = {name: f"the passphrase of {name}" for name in ("alice", "bob", "carol")}


@settings(max_examples=40, deadline=None)
@given(secret=st.binary(min_size=1, max_size=64), number=st.integers(3, 6))
def test_any_two_open_it_in_any_order(secret: bytes, number: int) -> None:
    people = {f"c{at}": f"passphrase number {at}" for at in range(number)}
    shares = split(secret, people, cost=CHEAP)
    for one, other in itertools.permutations(people, 2):
        assert join([(shares[one], people[one]), (shares[other], people[other])]) == secret


def test_what_one_custodian_holds_is_independent_of_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each custodian there is randomness under which another secret gives them the very same halves."""
    secret, other = bytes(range(32)), bytes(reversed(range(32)))
    for who in PEOPLE:
        draws: list[bytes] = []

        def draw(size: int, draws: list[bytes] = draws) -> bytes:
            draws.append(bytes([len(draws) + 1]) * size)
            return draws[-1]

        monkeypatch.setattr("freehold.root_of_trust.custodians.secrets.token_bytes", draw)
        held = Share.from_bytes(split(secret, PEOPLE, cost=CHEAP)[who]).halves(PEOPLE[who])
        pairs = list(itertools.combinations(sorted(PEOPLE), 2))
        wanted = dict(zip(pairs, draws[: len(pairs)], strict=True))
        for (one, second), value in wanted.items():  # the draw that `who` sees as XOR must make up for the new secret
            if second == who:
                wanted[one, second] = bytes(a ^ b ^ c for a, b, c in zip(value, secret, other, strict=True))
        again = [*wanted.values(), *draws[len(pairs) :]]
        monkeypatch.setattr("freehold.root_of_trust.custodians.secrets.token_bytes", lambda size, n=again: n.pop(0))
        assert Share.from_bytes(split(other, PEOPLE, cost=CHEAP)[who]).halves(PEOPLE[who]) == held


@pytest.mark.parametrize(
    ("choose", "why"),
    [
        (lambda s: [(s["alice"], PEOPLE["alice"])], "the shares are of alice"),
        (lambda s: [(s["alice"], PEOPLE["alice"])] * 2, "the shares are of alice, alice"),
        (lambda s: [(s[n], PEOPLE[n]) for n in PEOPLE], "alice, bob, carol"),
        (lambda s: [(s["alice"], PEOPLE["alice"]), (s["bob"], PEOPLE["carol"])], "the passphrase of bob is wrong"),
        (lambda s: [(s["alice"], PEOPLE["alice"]), (b"{}", "x")], "not a custodian's share"),
        (
            lambda s: [(s["alice"], PEOPLE["alice"]), (split(b"y" * 32, PEOPLE, cost=CHEAP)["bob"], PEOPLE["bob"])],
            "not made together",
        ),
        (
            lambda s: [(s["alice"], PEOPLE["alice"]), (s["alice"].replace(b'"alice"', b'"bob"', 1), PEOPLE["alice"])],
            "the passphrase of bob is wrong, or the share was changed",
        ),
    ],
    ids=["one", "one twice", "three", "wrong passphrase", "no share", "another ceremony", "renamed"],
)
def test_anything_else_opens_nothing(choose: object, why: str) -> None:
    shares = split(b"x" * 32, PEOPLE, cost=CHEAP)
    with pytest.raises(CustodyRefused, match=why):
        join(choose(shares))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("people", "why"),
    [
        ({"alice": "a" * 12, "bob": "b" * 12}, "2 custodians cannot lose one"),
        (PEOPLE | {"bob": "short"}, "the passphrase of bob is too short"),
        (PEOPLE | {"../bob": "b" * 12}, "is not a name"),
    ],
)
def test_a_custody_that_would_not_hold_is_not_begun(people: dict[str, str], why: str) -> None:
    with pytest.raises(CustodyRefused, match=why):
        split(b"x" * 32, people, cost=CHEAP)


@pytest.mark.parametrize("cost", [0, 1, 3, 1 << 21])
def test_a_share_that_would_eat_the_memory_is_refused(cost: int) -> None:
    share = json.loads(split(b"x" * 32, PEOPLE, cost=CHEAP)["alice"]) | {"cost": cost}
    with pytest.raises(CustodyRefused, match="cost"):
        Share.from_bytes(json.dumps(share).encode())


def shares_in(directory: Path, *names: str) -> list[tuple[bytes, str]]:
    return [((directory / f"{name}.share").read_bytes(), PEOPLE[name]) for name in names]


def test_a_root_issues_under_two_of_its_three_custodians(tmp_path: Path) -> None:
    root = ceremony.make_root(tmp_path / "root", "lab", PEOPLE, NOW, cost=CHEAP)
    request = pki.authority_request(CA_KEY, bmc_ca().subject, OOB)
    for pair in itertools.combinations(PEOPLE, 2):
        issued = ceremony.issue(tmp_path / "root", request, shares_in(tmp_path / "root", *pair), NOW)
        pki.require_authority(issued, root, NOW)
        assert issued.public_key() == CA_KEY.public_key()
    assert root.public_key().curve.name == "secp384r1"  # type: ignore[union-attr]
    files = {path.name: path.read_bytes() for path in (tmp_path / "root").iterdir()}
    assert sorted(files) == ["alice.share", "bob.share", "carol.share", "root.key.sealed", "root.pem"]
    assert b"PRIVATE" not in b"".join(files.values())
    assert all((tmp_path / "root" / name).stat().st_mode & 0o077 == 0 for name in files if name != "root.pem")
    with pytest.raises(CustodyRefused, match="the shares are of alice"):
        ceremony.issue(tmp_path / "root", request, shares_in(tmp_path / "root", "alice"), NOW)


def test_a_root_is_made_once_and_its_parts_belong_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ceremony.make_root(tmp_path / name, "lab", PEOPLE, NOW, cost=CHEAP)
    with pytest.raises(CustodyRefused, match="is not empty"):
        ceremony.make_root(tmp_path / "one", "lab", PEOPLE, NOW, cost=CHEAP)
    request = pki.authority_request(CA_KEY, bmc_ca().subject, OOB)
    with pytest.raises(CustodyRefused, match="do not open"):
        ceremony.issue(tmp_path / "one", request, shares_in(tmp_path / "two", "alice", "bob"), NOW)
    (tmp_path / "one/root.pem").write_bytes((tmp_path / "two/root.pem").read_bytes())
    with pytest.raises(CustodyRefused, match=r"is not that of root\.pem"):
        ceremony.issue(tmp_path / "one", request, shares_in(tmp_path / "one", "alice", "bob"), NOW)
    with pytest.raises(CustodyRefused, match="holds no root"):
        ceremony.issue(tmp_path, request, shares_in(tmp_path / "one", "alice", "bob"), NOW)


def test_a_root_is_given_to_other_custodians_and_stays_the_same_root(tmp_path: Path) -> None:
    root = ceremony.make_root(tmp_path / "root", "lab", PEOPLE, NOW, cost=CHEAP)
    after = {"alice": "another passphrase", "bob": "and another one", "dave": "the passphrase of dave"}
    with pytest.raises(CustodyRefused, match="the shares are of alice"):
        ceremony.reshare(tmp_path / "root", tmp_path / "new", shares_in(tmp_path / "root", "alice"), after, cost=CHEAP)
    ceremony.reshare(
        tmp_path / "root", tmp_path / "new", shares_in(tmp_path / "root", "alice", "bob"), after, cost=CHEAP
    )
    assert ceremony.root_certificate(tmp_path / "new") == root
    request = pki.authority_request(CA_KEY, bmc_ca().subject, OOB)
    new = [((tmp_path / f"new/{name}.share").read_bytes(), after[name]) for name in ("bob", "dave")]
    pki.require_authority(ceremony.issue(tmp_path / "new", request, new, NOW), root, NOW)
    with pytest.raises(CustodyRefused, match="do not open"):  # what carol took away opens the old copy only
        ceremony.issue(tmp_path / "new", request, shares_in(tmp_path / "root", "alice", "carol"), NOW)
    with pytest.raises(CustodyRefused, match="is not empty"):
        ceremony.reshare(tmp_path / "root", tmp_path / "new", shares_in(tmp_path / "root", "alice", "bob"), after)


def test_a_bad_request_opens_no_share(tmp_path: Path) -> None:
    ceremony.make_root(tmp_path / "root", "lab", PEOPLE, NOW, cost=CHEAP)
    empty = x509.CertificateSigningRequestBuilder().subject_name(bmc_ca().subject)
    with pytest.raises(pki.CertificateError):
        ceremony.issue(tmp_path / "root", empty.sign(CA_KEY, hashes.SHA256()), [], NOW)
