from __future__ import annotations

from importlib import import_module

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "dynabench_site"
    verbose_name = "Operations"

    def ready(self) -> None:
        import_module("dynabench_site.checks")
