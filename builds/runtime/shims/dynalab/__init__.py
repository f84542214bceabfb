"""Stands in for the dynalab package inside model images: what handlers import, and no more."""
