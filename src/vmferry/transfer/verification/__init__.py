"""Proofs that outlive a transfer: seals, receipts, and reading again what they name."""
