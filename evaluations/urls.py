from django.urls import path, re_path

from evaluations import pages, try_it
from submissions import pages as token_pages

urlpatterns = [
    path("", pages.home, name="home"),
    path("tasks/<str:code>/", pages.task, name="task"),
    path("tasks/<str:code>/datasets/<str:name>/", pages.dataset, name="dataset"),
    path("models/<int:pk>/", pages.model, name="model"),
    path("models/<int:pk>/log", pages.model_log, name="model_log"),
    path("models/<int:pk>/try/", try_it.try_it, name="try_it"),
    re_path(rf"^models/(?P<pk>\d+)/(?P<action>{'|'.join(pages.DONE)})/$", pages.act, name="model_action"),
    path("submissions/", pages.my_submissions, name="my_submissions"),
    path("generate_api_token", token_pages.tokens, name="generate_api_token"),
    path("generate_api_token/<int:pk>/revoke", token_pages.revoke, name="revoke_api_token"),
]
