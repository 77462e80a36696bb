"""The lab's hosts: processes, networks and storages of its own."""
