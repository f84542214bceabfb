"""One settings module for both profiles: what differs comes from the variables in docs/operations.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from dynabench_site.env import database, env_bool, env_int, env_secret, env_str, mail

BASE_DIR = Path(__file__).resolve().parent.parent
VAR = Path(env_str("DYNABENCH_VAR") or BASE_DIR / "var").resolve()
(VAR / "static").mkdir(parents=True, exist_ok=True)

DATABASES = {"default": database(env_str("DYNABENCH_DATABASE_URL") or f"sqlite://{VAR}/db.sqlite3")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = env_secret("DYNABENCH_SECRET_KEY", VAR / "secret_key")
IS_SECRET_KEY_MADE_HERE = not env_str("DYNABENCH_SECRET_KEY")
SECRET_KEY_FALLBACKS = env_str("DYNABENCH_SECRET_KEY_FALLBACKS").split()
DEBUG = env_bool("DYNABENCH_DEBUG")
PORT = env_int("DYNABENCH_PORT", 8000)
BASE_URL = (env_str("DYNABENCH_BASE_URL") or f"http://127.0.0.1:{PORT}").rstrip("/")
ALLOWED_HOSTS = env_str("DYNABENCH_ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]").split(",")
CSRF_TRUSTED_ORIGINS = [BASE_URL]

AWS_REGION = env_str("DYNABENCH_AWS_REGION", "us-west-1")
S3_BUCKET = env_str("DYNABENCH_S3_BUCKET", "sagemaker-{region}")
SAGEMAKER_ROLE = env_str("DYNABENCH_SAGEMAKER_ROLE")
# What a profile is: the classes behind files, queue, images and inference. Only checks ask which one it is.
PROFILES: dict[str, dict[str, Any]] = {
    "embedded": {
        "STORAGE_FOR": "tasks_catalog.backends.local.storage_for",
        "BROKER": {"orm": "default", "broker_class": "dynabench_site.backends.local.RowBroker"},
        "DEPLOYER": "builds.backends.local.LocalDeployer",
        "INFERENCE_RUNNER": "evaluations.backends.local.LocalRunner",
        "MODEL_SERVER": "asgi",
    },
    "production": {
        "STORAGE_FOR": "tasks_catalog.backends.aws.storage_for",
        "BROKER": {"broker_class": "dynabench_site.backends.aws.SqsBroker"},
        "DEPLOYER": "builds.backends.aws.AwsDeployer",
        "INFERENCE_RUNNER": "evaluations.backends.sagemaker.SageMakerRunner",
        "MODEL_SERVER": "torchserve",
    },
}
PROFILE = env_str("DYNABENCH_PROFILE") or "embedded"
if PROFILE not in PROFILES:
    raise ImproperlyConfigured(f"DYNABENCH_PROFILE is {PROFILE!r}: it is one of {', '.join(PROFILES)}.")
globals().update(PROFILES[PROFILE])

SANDBOX = env_str("DYNABENCH_SANDBOX")
ALLOW_UNSANDBOXED = env_bool("DYNABENCH_ALLOW_UNSANDBOXED")
BASE_IMAGE = env_str("DYNABENCH_BASE_IMAGE", "dynabench-base:1")
BUILD_CA_BUNDLE = env_str("DYNABENCH_BUILD_CA_BUNDLE")
INDEX_URL = env_str("DYNABENCH_INDEX_URL")
TORCH_SOURCE = env_str("DYNABENCH_TORCH_SOURCE")

# A job's lease is renewed while its worker lives; heartbeats and sweeps follow from it.
LEASE_SECONDS = env_int("DYNABENCH_LEASE_SECONDS", 30, least=2)
HEARTBEAT_SECONDS = LEASE_SECONDS / 6
GONE_SECONDS = LEASE_SECONDS / 2
# No job may run longer; a broker that redelivers earlier would only ring twice.
MAX_DEADLINE_SECONDS = 24 * 3600

QUEUE_PREFIX = env_str("DYNABENCH_QUEUE_PREFIX", "dynabench")
Q_CLUSTER = {
    "name": QUEUE_PREFIX,
    **PROFILES[PROFILE]["BROKER"],
    "poll": 0.1,
    "guard_cycle": 0.5,
    "bulk": 1,
    "timeout": MAX_DEADLINE_SECONDS + 300,
    "retry": MAX_DEADLINE_SECONDS + 600,
    "ack_failures": True,
    "save_limit": -1,
    "scheduler": False,
    "ALT_CLUSTERS": {},
}

INSTALLED_APPS = [
    "evaluations",
    "builds",
    "submissions",
    "tasks_catalog",
    "dynabench_site.apps.SiteConfig",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "allauth",
    "allauth.account",
    "rest_framework",
    "django_q",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "dynabench_site.middleware.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
]
ROOT_URLCONF = "dynabench_site.urls"
WSGI_APPLICATION = "dynabench_site.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("UserAttributeSimilarityValidator", "MinimumLengthValidator", "CommonPasswordValidator")
]
LOGIN_REDIRECT_URL = "/"
OPEN_SIGNUP = env_bool("DYNABENCH_OPEN_SIGNUP", True)
ACCOUNT_ADAPTER = "dynabench_site.accounts.AccountAdapter"
ACCOUNT_LOGIN_METHODS = {"username", "email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "username*", "password1*", "password2*"]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "submissions.authentication.TokenAuthentication",
        "rest_framework.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser", "rest_framework.parsers.FormParser"],
    "EXCEPTION_HANDLER": "dynabench_site.api.problem",
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.LimitOffsetPagination",
    "PAGE_SIZE": 100,
}

EMAIL_BACKEND = "dynabench_site.outbox.OutboxBackend"
globals().update(mail(env_str("DYNABENCH_MAIL_URL") or f"file://{VAR}/mail"))
DEFAULT_FROM_EMAIL = "Dynabench <no-reply@localhost>"

CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": VAR / "cache" / "django"}
}
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedStaticFilesStorage"},
}
STATIC_URL = "/static/"
STATIC_ROOT = VAR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
WHITENOISE_USE_FINDERS = True

LANGUAGE_CODE = "en-gb"
TIME_ZONE = "UTC"

# An https address means a proxy that ends TLS, and that sets these headers itself: deploy/nginx.conf.
IS_HTTPS = BASE_URL.startswith("https:")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = IS_HTTPS
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if IS_HTTPS else None
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$"]
SECURE_HSTS_SECONDS = 30 * 24 * 3600 if IS_HTTPS else 0
ALLAUTH_TRUSTED_PROXY_COUNT = int(IS_HTTPS)
# HSTS for subdomains and preloading: the other hosts of the domain are not ours to decide about.
SILENCED_SYSTEM_CHECKS = ["security.W005", "security.W021"]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"no_query": {"()": "dynabench_site.logs.StripQuery"}},
    "formatters": {"json": {"()": "dynabench_site.logs.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "filters": ["no_query"]}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.server": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        "botocore": {"level": "WARNING"},
        "django-q": {"handlers": [], "level": "WARNING", "propagate": True},
    },
}
