"""The driver for libvirt and QEMU on this machine."""
