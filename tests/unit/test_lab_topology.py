"""The laboratory's plan: Fig. 2 with addresses from the ranges for documentation, every path on its own."""

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface

from twisted.trial.unittest import SynchronousTestCase

from rvpn.interfaces import IPNetwork
from rvpn.lab.topology import Node, Topology, routes_to_client

DOCUMENTATION: tuple[IPNetwork, ...] = (
    *map(IPv4Network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")),
    IPv6Network("2001:db8::/32"),
)


def ends(topology: Topology) -> list[tuple[str, str]]:
    """Return every end of every cable."""
    return [end for link in topology.links for end in (link.near, link.far)]


class TopologyTests(SynchronousTestCase):
    """Fig. 2 in both families."""

    def setUp(self) -> None:
        self.topologies = [Topology(family) for family in (4, 6)]

    def test_figure(self) -> None:
        """It has the patent's nodes, with the patent's addresses on the LAN."""
        for topology in self.topologies:
            names = [node.name for node in topology.nodes]
            expected = ["client", "router", "gateway1", "gateway2", "gateway3", "lan"]
            self.assertEqual(names, [*expected, "target1", "target2", "target3"])
            self.assertEqual(
                topology.lan_addresses("target3"), (ip_address("10.0.0.3"), ip_address("fd00:10::3"))
            )
            self.assertEqual(topology.lan_addresses("gateway1")[0], ip_address("10.0.0.21"))

    def test_cabled(self) -> None:
        """Each interface is one end of one cable, and each cable has two interfaces."""
        for topology in (*self.topologies, Topology(gateways=1, targets=1), Topology(6, 20, 20)):
            interfaces = [
                (node.name, interface.name) for node in topology.nodes for interface in node.interfaces
            ]
            self.assertEqual(sorted(interfaces), sorted(ends(topology)))
            self.assertEqual(len(set(interfaces)), len(interfaces))

    def test_outside_is_documentation(self) -> None:
        """Outside, only addresses that nobody has are used."""
        for topology in self.topologies:
            nodes = {node.name: node for node in topology.nodes}
            for link in topology.links:
                for name, interface_name in (link.near, link.far) if link.near[0] == "router" else ():
                    (interface,) = (each for each in nodes[name].interfaces if each.name == interface_name)
                    for text in interface.addresses:
                        self.assertTrue(
                            any(ip_interface(text).ip in network for network in DOCUMENTATION), text
                        )

    def test_one_family_outside(self) -> None:
        """Outside there is one IP version alone, so that nothing can go by the other."""
        for topology in self.topologies:
            outer = [topology.client_address, *map(topology.gateway_address, topology.gateway_names)]
            self.assertEqual({address.version for address in outer}, {topology.family})
            self.assertEqual(len(set(outer)), 4)

    def test_addresses_are_unique(self) -> None:
        """No two nodes have the same address; the router may have one on several links."""
        for topology in (*self.topologies, Topology(6, 20, 20), Topology(4, 20, 20)):
            owners: dict[object, set[str]] = {}
            for node in topology.nodes:
                for interface in node.interfaces:
                    for text in interface.addresses:
                        owners.setdefault(ip_interface(text).ip, set()).add(node.name)
            self.assertTrue(all(len(names) == 1 for names in owners.values()), owners)

    def test_only_the_router_forwards(self) -> None:
        """Gateways do not forward before their service says so, clients and targets never."""
        for topology in self.topologies:
            self.assertEqual([node.name for node in topology.nodes if node.forwarding], ["router"])

    def test_no_way_out(self) -> None:
        """The router has no default route, and no default route leads elsewhere than to it."""
        for topology in self.topologies:
            for node in topology.nodes:
                defaults = [route for route in node.routes if route.destination.prefixlen == 0]
                expected = 1 if node.name == "client" or node.name.startswith("gateway") else 0
                self.assertEqual(len(defaults), expected, node.name)
                for route in defaults:
                    self.assertIn(str(route.via), self.router_addresses(topology))

    def router_addresses(self, topology: Topology) -> set[str]:
        """Return the router's addresses without their lengths."""
        router: Node = next(node for node in topology.nodes if node.name == "router")
        return {str(ip_interface(text).ip) for interface in router.interfaces for text in interface.addresses}

    def test_routes_to_client(self) -> None:
        """A target reaches both inner addresses through the LAN addresses of one gateway."""
        four, six = routes_to_client(self.topologies[0].lan_addresses("gateway2"))
        self.assertEqual((str(four.destination), str(four.via)), ("10.99.0.1/32", "10.0.0.22"))
        self.assertEqual((str(six.destination), str(six.via)), ("fd00:99::1/128", "fd00:10::22"))

    def test_limits(self) -> None:
        """What the address plan has no room for is refused."""
        for family, gateways, targets in ((5, 3, 3), (4, 0, 3), (4, 21, 3), (4, 3, 0), (4, 3, 21)):
            self.assertRaises(ValueError, Topology, family, gateways, targets)
