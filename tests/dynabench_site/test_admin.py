from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.urls import reverse

from builds.models import Build
from dynabench_site.clusters import ClusterHeartbeat
from dynabench_site.outbox import OutboxMail
from dynabench_site.state import StatusEvent
from submissions.models import ApiToken
from tests.conftest import in_cluster

CHANGELISTS = [f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist" for model in admin.site._registry]
OURS = [
    name
    for name in CHANGELISTS
    if name.split(":")[1].split("_")[0] in {"dynabench", "tasks", "submissions", "builds", "evaluations"}
]


@pytest.fixture
def plain_staff(db):
    return User.objects.create_user("grace", "grace@example.org", "secret", is_staff=True)


def test_all_that_operators_need_is_there():
    names = {name.split(":")[1].removesuffix("_changelist") for name in OURS}

    assert names >= {
        "tasks_catalog_task",
        "tasks_catalog_dataset",
        "tasks_catalog_evalserver",
        "submissions_submission",
        "submissions_apitoken",
        "builds_build",
        "evaluations_inference",
        "evaluations_scoring",
        "evaluations_score",
        "dynabench_site_outboxmail",
        "dynabench_site_clusterheartbeat",
        "dynabench_site_statusevent",
    }


def test_nobody_edits_messages():
    assert not [name for name in CHANGELISTS if "django_q" in name]


@pytest.mark.parametrize("name", ["admin:index", *CHANGELISTS])
def test_anonymous_visitors_log_in_first(client, db, name):
    response = client.get(reverse(name), follow=True)

    assert response.redirect_chain[-1][0].startswith("/accounts/login/")


@pytest.mark.parametrize("name", ["admin:index", *CHANGELISTS])
def test_users_have_no_admin(client, user, task, name):
    task.owners.add(user)
    client.force_login(user)

    assert client.get(reverse(name), follow=True).status_code == 403


@pytest.mark.parametrize("name", ["admin:index", *OURS, "admin:auth_user_changelist"])
def test_staff_see_every_list(client, plain_staff, evaluated, name):
    client.force_login(plain_staff)

    assert client.get(reverse(name)).status_code == 200
    assert client.get(reverse(name), {"q": "1"}).status_code in {200, 302}


def test_staff_choose_owners_but_do_not_edit_people(client, plain_staff, user):
    client.force_login(plain_staff)
    query = {"app_label": "tasks_catalog", "model_name": "task", "field_name": "owners", "term": "ad"}

    found = client.get(reverse("admin:autocomplete"), query).json()

    assert [row["text"] for row in found["results"]] == ["ada"]
    assert client.get(reverse("admin:auth_user_change", args=[user.pk])).status_code == 403
    assert client.get(reverse("admin:auth_user_add")).status_code == 403


@pytest.fixture
def operator(client, plain_staff):
    client.force_login(plain_staff)
    return client


def build_list(operator, **query):
    page = operator.get(reverse("admin:builds_build_changelist"), query)
    return list(page.context["cl"].result_list)


def test_a_queued_job_without_a_running_cluster_is_stuck(operator, submission):
    build = Build.wanted(submission)

    assert build_list(operator, stuck="yes") == [build]
    assert "start it with `manage.py cluster build`" in operator.get("/admin/").content.decode()


def test_a_queued_job_of_a_running_cluster_is_not(operator, submission):
    Build.wanted(submission)

    with in_cluster("build"):
        assert build_list(operator, stuck="yes") == []
        assert "Nothing is stuck." in operator.get("/admin/").content.decode()


def test_a_waiting_job_shows_its_reason_and_one_button_makes_it_due(operator, submission):
    build = Build.wanted(submission)
    with in_cluster("build"):
        assert build.claim()
        build.wait("no sandbox on this host", 3600)
        address = reverse("admin:builds_build_change", args=[build.pk])
        front = operator.get("/admin/").content.decode()
        assert address in front
        assert "waiting for no sandbox on this host" in front

        operator.post(address, {"_button": "retry"})

        build.refresh_from_db()
        assert build.claim()


def test_a_job_whose_worker_is_gone_is_stuck_and_one_button_frees_it(operator, submission):
    build = Build.wanted(submission)
    with in_cluster("build"):
        assert build.claim()
        Build.objects.update(lease_until=Now() - timedelta(seconds=1))
        assert build_list(operator, stuck="yes") == [build]

        operator.post(reverse("admin:builds_build_change", args=[build.pk]), {"_button": "retry"})

    build.refresh_from_db()
    assert build.status == "queued"


def test_a_job_in_good_hands_can_not_be_retried(operator, submission):
    build = Build.wanted(submission)
    with in_cluster("build"):
        assert build.claim()

        operator.post(reverse("admin:builds_build_change", args=[build.pk]), {"_button": "retry"})

    build.refresh_from_db()
    assert build.status == "running"


def test_who_acted_is_in_the_history(operator, db):
    mail = OutboxMail.objects.create(key="k", to="a@example.org", cluster="mail", status="dead", attempts=16)

    operator.post(reverse("admin:dynabench_site_outboxmail_change", args=[mail.pk]), {"_button": "retry"})

    assert StatusEvent.objects.get().cluster == "grace (admin)"


def test_buttons_do_nothing_on_get_or_for_users(client, user, db):
    mail = OutboxMail.objects.create(key="k", to="a@example.org", cluster="mail", status="dead")
    address = reverse("admin:dynabench_site_outboxmail_change", args=[mail.pk])
    client.force_login(user)

    client.post(address, {"_button": "retry"})

    mail.refresh_from_db()
    assert mail.status == "dead"


def test_mail_is_stuck_only_when_no_cluster_runs_at_all(operator, db):
    OutboxMail.objects.create(key="k", to="a@example.org", cluster="mail")
    page = reverse("admin:dynabench_site_outboxmail_changelist")

    assert len(operator.get(page, {"stuck": "yes"}).context["cl"].result_list) == 1
    with in_cluster("default"):
        assert len(operator.get(page, {"stuck": "yes"}).context["cl"].result_list) == 0


def test_tokens_are_revoked_and_their_digests_never_shown(operator, user):
    token, secret = ApiToken.make(user=user, name="laptop")
    address = reverse("admin:submissions_apitoken_change", args=[token.pk])

    operator.post(address, {"_button": "revoke"})
    pages = operator.get(address).content + operator.get(reverse("admin:submissions_apitoken_changelist")).content

    assert token.digest.encode() not in pages
    assert secret.encode() not in pages
    assert not ApiToken.objects.valid().exists()


def test_clusters_show_whether_they_live(operator, db):
    ClusterHeartbeat.objects.create(name="gone", host="h", pid=1, last_seen=Now() - timedelta(hours=1))
    with in_cluster("build"):
        rows = operator.get(reverse("admin:dynabench_site_clusterheartbeat_changelist")).context["cl"].result_list

        assert {row.name: row.is_alive for row in rows} == {"build": True, "gone": False}


def test_no_page_of_the_admin_needs_inline_scripts_or_styles(operator, evaluated):
    for address in ["/admin/", reverse("admin:tasks_catalog_task_change", args=[evaluated.task_id])]:
        response = operator.get(address)

        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert b"style=" not in response.content
        assert b"onclick=" not in response.content
