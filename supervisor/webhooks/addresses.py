"""Recognizes public IP addresses, the only ones that ``--webhook-deny-private`` allows; in the supervisor."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # Azure's channel to its virtual machines, in every one of them
            "192.0.0.0/24",  # Oracle Cloud's metadata among it; some versions of Python call parts of it global
            "192.88.99.0/24",  # relays of 6to4
            "64:ff9b:1::/48",  # translates to IPv4 addresses of this network
            "fec0::/10",  # local to a site
        ),
    )
)

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Return whether ``text``, an address from ``getaddrinfo``, is a public one; an IPv6 address that embeds an IPv4 one is as
    public as that."""
    address: Address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner(address)
        if inner is not None:
            return is_public(str(inner))
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to ``address`` reach, or None."""
    if address in _NAT64 or int(address) >> 32 == 0:  # the latter: "IPv4-compatible", and ::1 with ::
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour
