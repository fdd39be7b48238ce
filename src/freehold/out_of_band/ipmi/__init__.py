"""IPMI over LAN, seen from outside: codec, a UDP port, the probe, and what its result means."""
