from django.urls import path

from submissions import api

urlpatterns = [
    path("authenticate/refresh_from_api", api.AccessTokenView.as_view()),
    path("tasks", api.TaskListView.as_view()),
    path("tasks/submitable", api.TaskListView.as_view(only_submitable=True)),
    path("models/upload/s3", api.UploadView.as_view(), name="upload"),
]
