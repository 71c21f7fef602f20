"""Which network addresses the service may connect to."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # IPv4-compatible, deprecated, still routed by some stacks
# Not global, although Python 3.11 takes them for it: site-local, documentation (RFC 9637), relays of 6to4.
_NEITHER = tuple(map(ipaddress.ip_network, ("fec0::/10", "3fff::/20", "192.88.99.0/24")))


@dataclass(frozen=True)
class AddressPolicy:
    """Global unicast addresses, and the networks that the operator names.

    An IPv6 address that carries an IPv4 one (mapped, compatible, 6to4, Teredo, NAT64) must pass as both.
    """

    private_networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, networks: Iterable[str]) -> Self:
        """From text such as '10.1.2.0/24'; raises ValueError."""
        return cls(tuple(ipaddress.ip_network(network) for network in networks))

    def allows(self, text: str) -> bool:
        """Whether a connection to this numeric address may be opened."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        return all(self._allows_one(each) for each in (address, *_carried(address)))

    def _allows_one(self, address: Address) -> bool:
        if _within(address, self.private_networks):
            return True
        special = address.is_multicast or address.is_reserved or address.is_unspecified or _within(address, _NEITHER)
        return address.is_global and not special


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _carried(address: Address) -> list[Address]:
    """IPv4 addresses inside an IPv6 one."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in found if each is not None]
