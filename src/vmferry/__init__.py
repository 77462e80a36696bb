"""vmferry moves virtual machines and their disks on QEMU/KVM and libvirt. docs/architecture.md tells where to read."""
