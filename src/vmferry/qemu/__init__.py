"""QEMU's tools and names: places, qemu-img, qemu-nbd, image locks."""
