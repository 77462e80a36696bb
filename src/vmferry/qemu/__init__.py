"""QEMU's tools and names: places, URLs of volumes, qemu-img, qemu-nbd, image locks."""
