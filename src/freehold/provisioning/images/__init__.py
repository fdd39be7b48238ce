"""What servers boot: the agent's signed image and its second stage, the OS image, and the manifest that describes it.

| module | makes |
|---|---|
| `artifacts` | the cache, by digest of inputs |
| `debian`, `kernel` | package versions, trees of packages, the kernel with its modules |
| `agent_ramdisk`, `stage2` | the initrd in the signed agent UKI, and the squashfs that it fetches and verifies |
| `uki` | Unified Kernel Images, their signature, the CD image for virtual media |
| `os_image`, `disk`, `guest` | the Debian root, GPT and FAT, the programs inside the image |
| `manifest` | the image manifest of docs/architecture.md |
| `build` | `build_base` (once, minutes) and `assemble_site` (per site, seconds) |
"""
