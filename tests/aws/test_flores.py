"""A translation set in production: shards in S3, and one batch transform job over all of them."""

from __future__ import annotations

import pytest

from evaluations.dataset_files import store_dataset_file
from evaluations.models import Inference, Score
from examples.pack import EXAMPLES, archive_bytes
from submissions.models import Submission
from tasks_catalog.models import BuildConfig, Dataset, Task
from tests.aws.stand import wait_for
from tests.aws.test_production import all_ended, how_they_are
from tests.conftest import jsonl
from tests.evaluations.flores import records
from tests.pipeline.conftest import send

pytestmark = [pytest.mark.aws, pytest.mark.timeout(600)]
PATIENCE = 240


def test_one_transform_job_answers_all_shards(production, stand, user, flores_task):
    BuildConfig.objects.update(model_server="asgi")
    task = Task.objects.get(pk=flores_task.pk)
    dataset = Dataset(task=task, name="own", format="Flores")
    store_dataset_file(dataset, jsonl(records("eng", "hrv", "mkd", "srp")))
    store_dataset_file(dataset, jsonl(records("eng", "hrv", "srp")))
    folder = f"s3://{task.storage().bucket_name}/datasets/flores/flores_small1"
    assert sorted(task.storage().listdir("datasets/flores/flores_small1")[1]) == [
        f"own-{language}.jsonl" for language in ("eng", "hrv", "srp")
    ]
    for name in ("build", "flores101"):
        production.cluster(name)

    send(user, task, archive_bytes(EXAMPLES / "flores-copy"), "flores-copy")

    assert wait_for(all_ended, PATIENCE), how_they_are()
    assert Submission.objects.get().status == "evaluated", how_they_are()
    [job] = stand.jobs()
    assert (job["region"], job["input"], job["status"]) == ("us-west-2", f"{folder}/own-", "Completed")
    inference = Inference.objects.get()
    counts = [len(task.storage().open(key).read().splitlines()) for key in inference.predictions_keys]
    assert counts == [16, 16, 16]
    score = Score.objects.get(metric="sp_bleu")
    assert len(score.by_tag) == 6
    assert score.by_tag["hrv-srp"]["value"] == pytest.approx(69.82, abs=0.01)
    assert score.value == pytest.approx(sum(row["value"] for row in score.by_tag.values()) / 6)
