"""The HTTP API, version 1, and its client. `client` and what it imports need no engine and no libvirt."""
