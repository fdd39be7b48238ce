"""Rack in a box: QEMU, OVMF, swtpm, Redfish BMCs, networks and faults. Imports nothing from freehold."""
