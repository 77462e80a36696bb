"""Copies without a VM: their queue, and what carries them out."""
