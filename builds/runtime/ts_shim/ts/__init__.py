"""Stands in for TorchServe's package inside images of our own runtime: what handlers import, and no more."""
