"""Where a transfer reads and writes: files, devices, NBD, and images through qemu-nbd."""
