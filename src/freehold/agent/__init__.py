"""Runs on the server itself, in the ramdisk and in the OS; standard library only."""
