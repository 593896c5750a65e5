"""Samplers as data, and recorded steps worked out again by them."""
