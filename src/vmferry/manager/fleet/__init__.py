"""Hosts and storages that were added, their certificates, and what spans several of them."""
