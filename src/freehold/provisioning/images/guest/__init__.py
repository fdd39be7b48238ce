"""Programs that run inside the OS image. Standard library only; copied into the image as they are."""
