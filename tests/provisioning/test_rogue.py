"""The probe for foreign DHCP servers, on the event loop that the controller uses."""

import socket
import threading

import pytest
import uvloop

from freehold.model.errors import FreeholdError
from freehold.provisioning.rogue import COOKIE, FIXED, find_rogues


def offer(request: bytes) -> bytes:
    """An OFFER of 192.0.2.66 for this DISCOVER."""
    fields = list(FIXED.unpack_from(request))
    fields[0], fields[8] = 2, bytes([192, 0, 2, 77])
    options = bytes([53, 1, 2, 54, 4, 192, 0, 2, 66, 255])
    return FIXED.pack(*fields) + COOKIE + options


@pytest.mark.slow
def test_a_foreign_offer_is_found_on_uvloop() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as free:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        free.bind(("127.0.0.1", 0))
        ports = server.getsockname()[1], free.getsockname()[1]
        free.close()

        def answer() -> None:
            request, peer = server.recvfrom(4096)
            server.sendto(offer(request), peer)

        thread = threading.Thread(target=answer)
        thread.start()

        async def look() -> list[object]:
            from freehold.provisioning.rogue import judge, probe

            return [*judge(await probe("lo", wait=2.0, ports=ports, target="127.0.0.1"), frozenset(), "lo")]

        (found,) = uvloop.run(look())
        thread.join()
    assert "calls itself 192.0.2.66" in getattr(found, "detail", "")
    assert getattr(found, "evidence", "") == "it offered 192.0.2.77"


def test_an_interface_that_is_not_there_is_an_error_in_words() -> None:
    with pytest.raises(FreeholdError, match="cannot look for rogue DHCP servers on nosuch0"):
        uvloop.run(find_rogues("nosuch0", frozenset()))
