"""DHCP and HTTP boot, virtual media, images, the server side of the agent's protocol."""
