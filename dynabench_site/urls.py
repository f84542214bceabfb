from django.contrib import admin
from django.urls import include, path

from dynabench_site import views

urlpatterns = [
    path("healthz", views.healthz),
    path("readyz", views.readyz),
    path("", include("submissions.urls")),
    path("", include("evaluations.api_urls")),
    path("", include("evaluations.urls")),
    path("accounts/", include("allauth.urls")),
    path("admin/", admin.site.urls),
]

handler404 = views.not_found
handler500 = views.server_error
