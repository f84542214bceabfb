from django.urls import path

from evaluations import api, services

SUBMISSIONS = "api/v1/submissions/"

urlpatterns = [
    path(SUBMISSIONS, api.SubmissionListView.as_view(), name="api_submissions"),
    path(f"{SUBMISSIONS}<int:pk>/", api.SubmissionView.as_view(), name="api_submission"),
    *(
        path(f"{SUBMISSIONS}<int:pk>/{action}/", api.ActionView.as_view(action=action), name=f"api_{action}")
        for action in services.ACTIONS
    ),
    path("api/v1/models/<int:pk>/predict", api.PredictView.as_view(), name="api_predict"),
    path("api/v1/tasks/<str:code>/leaderboard/", api.LeaderboardView.as_view(), name="api_leaderboard"),
]
