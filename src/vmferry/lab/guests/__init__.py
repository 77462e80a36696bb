"""Guests that write, acknowledge and can be judged afterwards."""
