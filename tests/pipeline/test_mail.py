"""A mail server that keeps us waiting delays the mail, never a model; a cluster that dies meanwhile sends it again."""

from __future__ import annotations

import asyncio

import pytest

from dynabench_site.outbox import OutboxMail
from evaluations.invariants import violations
from submissions.models import Submission
from tests.dynabench_site.test_mail_server import HOST, Inbox, running
from tests.pipeline.conftest import send, trivial_archive, wait_for


class Holding(Inbox):
    """It takes messages, and answers none of them as long as it holds."""

    holds = True

    async def handle_DATA(self, server, session, envelope) -> str:
        answer = await super().handle_DATA(server, session, envelope)
        while self.holds:
            await asyncio.sleep(0.1)
        return answer


@pytest.mark.timeout(300)
def test_models_go_on_while_a_mail_waits_and_it_is_sent_again_with_its_id(start_cluster, user, task, dataset, tmp_path):
    inbox = Holding()
    send(user, task, trivial_archive("quiet", tmp_path), "quiet")
    with running(inbox):
        url = f"smtp://{HOST}:{inbox.port}"
        products = {"DJANGO_SETTINGS_MODULE": "dynabench_site.settings", "DYNABENCH_MAIL_URL": url}
        clusters = [start_cluster(name, **products) for name in ("build", "default")]

        assert wait_for(lambda: Submission.objects.get().status == "evaluated" and len(inbox.ids) >= 2, 60)
        assert not OutboxMail.objects.filter(status="succeeded").exists()
        for cluster in clusters:
            cluster.kill()
        inbox.holds = False
        clusters[0].start()
        assert wait_for(lambda: OutboxMail.objects.filter(status="succeeded").count() == 2, 60)

    assert set(inbox.ids) == {mail.message_id for mail in OutboxMail.objects.all()}
    assert all(inbox.ids.count(one) >= 2 for one in inbox.ids)
    assert violations() == []
