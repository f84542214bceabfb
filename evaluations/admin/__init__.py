"""The admin pages of all that is configured, and of all that was computed under it."""

from evaluations.admin import configuration, results

__all__ = ["configuration", "results"]
