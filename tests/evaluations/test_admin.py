from __future__ import annotations

import gzip
import hashlib
import io
import json

import pytest
from django.contrib.messages import get_messages
from django.core.management import call_command
from django.urls import reverse

from builds.models import Build
from dynabench_site.state import StatusEvent
from evaluations.dataset_files import store_dataset_file
from evaluations.models import CurrentScores, Inference, Scoring
from submissions.models import Submission
from tasks_catalog.demo_flores import train_sentencepiece
from tasks_catalog.models import BuildConfig, Dataset, EvalServer, Task, TaskMetric
from tests.conftest import EXAMPLES, IO_YAML, jsonl, make_built

TASK_ADD = "/admin/tasks_catalog/task/add/"
DATASET_ADD = "/admin/tasks_catalog/dataset/add/"
FORM = {
    "code": "mood",
    "name": "Mood",
    "io_yaml": IO_YAML,
    "submitable": "on",
    "submission_limit": "3",
    "limit_hours": "24",
    "build_config-TOTAL_FORMS": "1",
    "build_config-INITIAL_FORMS": "0",
    "build_config-0-eval_server": "default",
    "build_config-0-aws_region": "us-west-1",
    "build_config-0-instance_type": "ml.m5.2xlarge",
    "build_config-0-instance_count": "1",
    "build_config-0-batch_strategy": "SingleRecord",
    "build_config-0-max_payload_mb": "6",
    "build_config-0-torchserve_config": "{}",
    "build_config-0-build_minutes": "60",
    "build_config-0-seconds_per_example": "2.0",
    "build_config-0-startup_seconds": "300",
    "build_config-0-memory_mb": "4096",
    "metrics-TOTAL_FORMS": "2",
    "metrics-INITIAL_FORMS": "0",
    "metrics-0-name": "macro_f1",
    "metrics-0-options": "{}",
    "metrics-0-ranks": "on",
    "metrics-0-weight": "4",
    "metrics-1-name": "examples_per_second",
    "metrics-1-options": "",
    "metrics-1-weight": "1",
}


@pytest.fixture
def admin(client, staff):
    client.force_login(staff)
    return client


def texts(response):
    return " ".join(str(message) for message in get_messages(response.wsgi_request))


def errors(response):
    """Each wrong field of the page and what is said there."""
    context = response.context
    found = dict(context["adminform"].form.errors)
    for inline in context["inline_admin_formsets"]:
        for number, form in enumerate(inline.formset.forms):
            found |= {f"{inline.formset.prefix}-{number}-{name}": text for name, text in form.errors.items()}
        if inline.formset.non_form_errors():
            found[inline.formset.prefix] = inline.formset.non_form_errors()
    return {name: " ".join(text) for name, text in found.items()}


def change_form(task, **changes):
    """What a browser would send for a task as it is, with changes."""
    metrics = list(task.metrics.all())
    config = task.build_config
    form = FORM | {
        "code": task.code,
        "name": task.name,
        "io_yaml": task.io_yaml,
        "build_config-INITIAL_FORMS": "1",
        "build_config-0-id": config.pk,
        "build_config-0-task": task.pk,
        "build_config-0-memory_mb": config.memory_mb,
        "metrics-TOTAL_FORMS": len(metrics),
        "metrics-INITIAL_FORMS": len(metrics),
    }
    form = {name: value for name, value in form.items() if not name.startswith(("metrics-0-", "metrics-1-"))}
    for number, row in enumerate(metrics):
        fields = {"id": row.pk, "task": task.pk, "name": row.name, "options": json.dumps(row.options)}
        form |= {f"metrics-{number}-{name}": value for name, value in fields.items()}
        form |= {f"metrics-{number}-weight": row.weight} | ({f"metrics-{number}-ranks": "on"} if row.ranks else {})
    return {name: value for name, value in (form | changes).items() if value is not None}


def url(obj, page="change"):
    return reverse(f"admin:{obj._meta.app_label}_{obj._meta.model_name}_{page}", args=[obj.pk])


def file_of(records, name="tweets.jsonl"):
    file = jsonl(records)
    file.name = name
    return file


def dataset_form(of, **changes):
    form = {"task": of.pk, "name": "reviews", "variant": "base", "format": "JsonLines", "access_type": "scoring"}
    return form | {"weight": "5", "file": file_of(EXAMPLES)} | changes


def test_a_task_with_build_config_and_metrics_is_made_on_one_page(admin):
    assert admin.get(TASK_ADD).status_code == 200

    response = admin.post(TASK_ADD, FORM)

    assert response.status_code == 302, errors(response)
    task = Task.objects.get(code="mood")
    assert task.build_config.eval_server_id == "default"
    assert [(row.name, row.kind, row.ranks, row.options) for row in task.metrics.all()] == [
        ("macro_f1", "perf", True, {}),
        ("examples_per_second", "job", False, {}),
    ]


def test_the_page_that_is_shown_first_can_be_saved_with_a_name_and_one_metric(admin):
    page = admin.get(TASK_ADD)
    form = {}
    for each in [page.context["adminform"].form, *(inline.formset for inline in page.context["inline_admin_formsets"])]:
        for part in getattr(each, "forms", [each]):
            form |= {f.html_name: f.value() for f in part if f.value() not in (None, False)}
        if hasattr(each, "management_form"):
            form |= {f.html_name: f.value() for f in each.management_form}
    form |= {"code": "mood", "name": "Mood", "metrics-0-name": "accuracy", "metrics-0-ranks": "on"}

    response = admin.post(TASK_ADD, form)

    assert response.status_code == 302, errors(response)
    assert BuildConfig.objects.get(task__code="mood").memory_mb == 4096


@pytest.mark.parametrize(("model", "number"), [(Task, None), (BuildConfig, 0), (TaskMetric, 1)])
def test_everything_that_can_be_set_is_on_the_page(admin, model, number):
    context = admin.get(TASK_ADD).context
    form = context["adminform"].form if number is None else context["inline_admin_formsets"][number].formset.forms[0]
    set_by_us = {"id", "task", "kind", "created_at"}

    editable = {field.name for field in [*model._meta.fields, *model._meta.many_to_many] if field.editable}

    assert editable - set(form.fields) <= set_by_us


IMPOSSIBLE = [
    ("code", "upload", "an address of the site"),
    ("code", "has space", "Letters, digits"),
    ("code", "123", "with a letter"),
    ("name", "", "required"),
    ("io_yaml", "input: [", "not valid YAML"),
    ("io_yaml", "input:\n  - {name: a, type: strnig}\noutput: []", "input, entry 1"),
    ("io_yaml", "input: [{name: a, type: string}]\noutput: []", "name in output what a model must answer"),
    ("io_yaml", "input: [{name: uid, type: string}]", "choose another name"),
    ("io_yaml", "perf_metric: {type: accuracy}", "does not belong here"),
    ("submission_limit", "0", "greater than or equal to 1"),
    ("limit_hours", "-1", "greater than or equal to"),
    ("build_config-0-eval_server", "nowhere", "valid choice"),
    ("build_config-0-aws_region", "Frankfurt", "like us-west-1"),
    ("build_config-0-instance_type", "p3.2xlarge", "add it first under Instance types"),
    ("build_config-0-instance_count", "0", "greater than or equal to 1"),
    ("build_config-0-gpu", "on", "has no GPU"),
    ("build_config-0-torchserve_config", "{", "valid JSON"),
    ("build_config-0-torchserve_config", "[1]", "JSON object"),
    ("build_config-0-torchserve_config", '{"a": [1]}', "text, true, false or a number"),
    ("build_config-0-torchserve_config", '{"a\\nb": 1}', "a name in small letters"),
    ("build_config-0-torchserve_config", '{"inference_address": "http://0.0.0.0:80"}', "Leave it out"),
    ("build_config-0-torchserve_config", '{"load_models": "all"}', "Leave it out"),
    ("build_config-0-torchserve_config", '{"job_queue_size": "1\\nmodel_store=/"}', "whole number"),
    ("build_config-0-torchserve_config", '{"default_response_timeout": "soon"}', "whole number"),
    ("build_config-0-torchserve_config", '{"decode_input_request": 0}', "true or false"),
    ("build_config-0-s3_bucket", "../secrets", "Small letters"),
    ("build_config-0-s3_bucket", "My_Bucket", "Small letters"),
    ("build_config-0-s3_bucket", "x-{secret}", "filled in"),
    ("build_config-0-model_server", "flask", "valid choice"),
    ("build_config-0-build_minutes", "0", "greater than or equal to 1"),
    ("build_config-0-seconds_per_example", "0", "greater than or equal to"),
    ("build_config-0-seconds_per_example", "1e300", "less than or equal to"),
    ("build_config-0-seconds_per_example", "nan", "number"),
    ("build_config-0-memory_mb", "1", "greater than or equal to 64"),
    ("metrics-0-name", "accuracyy", "There is no metric accuracyy"),
    ("metrics-0-options", '{"average": "best"}', "no option"),
    ("metrics-0-options", '"macro"', "JSON object"),
    ("metrics-0-reference", "statement", "Models predict: label"),
    ("metrics-0-weight", "-1", "greater than or equal to 0"),
    ("metrics-0-weight", "1e308", "less than or equal to"),
    ("metrics-1-ranks", "on", "Only a performance metric"),
]


@pytest.mark.parametrize(("field", "value", "said"), IMPOSSIBLE)
def test_what_can_not_work_is_refused_at_its_field(admin, field, value, said):
    response = admin.post(TASK_ADD, FORM | {field: value})

    assert said in errors(response)[field]
    assert not Task.objects.exists()


def test_a_metric_needs_the_file_that_it_reads(admin):
    options = {"metrics-0-name": "sp_bleu", "metrics-0-options": '{"sentencepiece_model": "/nowhere/spm.model"}'}

    response = admin.post(TASK_ADD, FORM | options)

    assert "/nowhere/spm.model is missing or can't be read" in errors(response)["metrics-0-options"]


def test_saving_again_takes_a_replaced_file_for_the_metric(admin, flores_task, tmp_path):
    row = flores_task.metrics.get()
    row.full_clean()
    row.save()
    (tmp_path / "spm.model").write_bytes(train_sentencepiece(["a b c", "b c d"], 20))
    unchanged = {"initial-metrics-0-options": json.dumps(row.options)}  # a hidden field, as its default is callable

    response = admin.post(url(flores_task), change_form(flores_task, **unchanged))

    assert response.status_code == 302, errors(response)
    digest = hashlib.sha256((tmp_path / "spm.model").read_bytes()).hexdigest()
    assert flores_task.metrics.get().files == {"sentencepiece_model": digest} != row.files


def test_some_metric_must_rank(admin):
    response = admin.post(TASK_ADD, {name: value for name, value in FORM.items() if name != "metrics-0-ranks"})

    assert "tick “ranks models” on one performance metric" in errors(response)["metrics"]


def test_only_one_metric_may_rank(admin):
    response = admin.post(TASK_ADD, FORM | {"metrics-1-name": "accuracy", "metrics-1-ranks": "on"})

    assert errors(response)["metrics-1-ranks"].startswith("macro_f1 ranks the models already")


def test_the_same_metric_twice_is_refused(admin):
    response = admin.post(TASK_ADD, FORM | {"metrics-1-name": "macro_f1"})

    assert "metrics" in errors(response)


def test_the_code_stays_once_there_are_datasets_or_models(admin, dataset):
    task = dataset.task

    response = admin.post(url(task), change_form(task, code="renamed", name="New name"))

    assert response.status_code == 302, errors(response)
    task.refresh_from_db()
    assert (task.code, task.name) == ("sentiment", "New name")


def rank_by_accuracy(task):
    names = [row.name for row in task.metrics.all()]
    macro, accuracy = names.index("macro_f1"), names.index("accuracy")
    return change_form(task, **{f"metrics-{macro}-ranks": None, f"metrics-{accuracy}-ranks": "on"})


def test_another_ranking_metric_costs_no_inference(admin, evaluated, capsys):
    task = evaluated.task

    response = admin.post(url(task), rank_by_accuracy(task))
    call_command("reevaluate", "--dry-run", "--json")

    assert response.status_code == 302, errors(response)
    assert task.perf_metric().name == "accuracy"
    assert json.loads(capsys.readouterr().out)["inferences"] == 0


def add_metric(task, **fields):
    form = change_form(task)
    last = form["metrics-TOTAL_FORMS"]
    fields = {"name": "precision", "options": "{}", "weight": "1", "task": task.pk} | fields
    return form | {"metrics-TOTAL_FORMS": last + 1} | {f"metrics-{last}-{name}": text for name, text in fields.items()}


def test_a_preview_says_what_would_change_and_changes_nothing(admin, evaluated):
    events = StatusEvent.objects.count()

    response = admin.post(url(evaluated.task), add_metric(evaluated.task) | {"_preview": "1"})

    assert "Nothing is saved yet" in response.content.decode()
    assert "0 builds, 0 inferences, 1 sets of scores of 1 models" in response.content.decode()
    assert response.context["adminform"].form.errors == {}
    assert response.context["inline_admin_formsets"][1].formset.forms[-1]["name"].value() == "precision"
    assert (TaskMetric.objects.filter(name="precision").count(), StatusEvent.objects.count()) == (0, events)


def test_a_preview_of_what_can_not_work_shows_the_errors(admin, evaluated):
    response = admin.post(url(evaluated.task), change_form(evaluated.task, name="") | {"_preview": "1"})

    assert "name" in errors(response)
    assert "Nothing is saved" not in response.content.decode()


def test_saving_says_what_is_outdated_and_a_button_re_evaluates(admin, evaluated):
    response = admin.post(url(evaluated.task), add_metric(evaluated.task))
    assert "1 sets of scores of 1 models" in texts(response)
    assert Scoring.objects.unfinished().count() == 0

    admin.post(url(evaluated.task), {"_button": "re_evaluate"})

    assert Scoring.objects.unfinished().count() == 1
    assert CurrentScores.objects.count() == 1


def test_a_new_format_warns_about_the_datasets(admin, dataset):
    task = dataset.task

    response = admin.post(url(task), change_form(task, io_yaml=IO_YAML.replace("neutral", "mixed")))

    assert "Upload these again if they don't fit: tweets." in texts(response)


def test_other_line_ends_are_no_new_format(admin, dataset):
    task = dataset.task

    response = admin.post(url(task), change_form(task, io_yaml=IO_YAML.strip().replace("\n", "\r\n")))

    assert "Upload these again" not in texts(response)


def test_a_new_bucket_warns_that_files_stay_where_they_are(admin, dataset):
    response = admin.post(url(dataset.task), change_form(dataset.task, **{"build_config-0-s3_bucket": "elsewhere"}))

    assert "Files are not moved" in texts(response)


def test_a_dataset_is_one_file(admin, submission, task):
    make_built(submission)

    response = admin.post(DATASET_ADD, dataset_form(task))

    assert response.status_code == 302, errors(response)
    assert "4 examples; tags: long (2), short (2). 1 model will be evaluated on it." in texts(response)
    dataset = Dataset.objects.get()
    assert task.storage().exists(dataset.inputs_keys[0])
    assert b"positive" not in task.storage().open(dataset.inputs_keys[0]).read()
    assert Inference.objects.get().dataset == dataset


def test_a_dataset_may_be_gzipped(admin, task):
    packed = io.BytesIO(gzip.compress(jsonl(EXAMPLES).read()))
    packed.name = "tweets.jsonl.gz"

    response = admin.post(DATASET_ADD, dataset_form(task, file=packed))

    assert response.status_code == 302, errors(response)
    assert Dataset.objects.get().examples == 4


BAD_FILES = [
    ([*EXAMPLES[:2], {"uid": "3", "statement": "No label."}], "Line 3"),
    ([*EXAMPLES[:2], EXAMPLES[0]], "Line 3"),
    ([{**EXAMPLES[0], "label": "great"}], "Line 1"),
]


@pytest.mark.parametrize(("records", "said"), BAD_FILES)
def test_a_bad_line_is_named_at_the_file_and_nothing_is_saved(admin, task, records, said):
    response = admin.post(DATASET_ADD, dataset_form(task, file=file_of(records)))

    assert said in errors(response)["file"]
    assert not Dataset.objects.exists()
    assert not task.storage().exists("datasets/sentiment/reviews.jsonl")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("file", "", "required"),
        ("name", "a b", "Letters, digits and hyphens"),
        ("name", "", "required"),
        ("variant", "sarcasm", "valid choice"),
        ("format", "Csv", "valid choice"),
        ("access_type", "secret", "valid choice"),
        ("weight", "-1", "greater than or equal to 0"),
        ("task", "0", "valid choice"),
        ("source_url", "javascript:alert(1)", "valid URL"),
    ],
)
def test_an_impossible_dataset_is_refused_at_its_field(admin, task, field, value, said):
    response = admin.post(DATASET_ADD, dataset_form(task, **{field: value}))

    assert said in errors(response)[field]
    assert not Dataset.objects.exists()


def test_a_variant_needs_its_base(admin, task):
    response = admin.post(DATASET_ADD, dataset_form(task, variant="fairness"))

    assert "There is no base set reviews" in errors(response)["name"]


def test_a_variant_must_point_to_examples_of_its_base(admin, dataset):
    records = [{**EXAMPLES[0], "uid": "f1", "input_id": "1"}, {**EXAMPLES[0], "uid": "f2", "input_id": "99"}]
    form = dataset_form(dataset.task, name="tweets", variant="fairness", file=file_of(records))

    response = admin.post(DATASET_ADD, form)

    assert "Line 2 (input_id): the input_id of f2 is '99'" in errors(response)["file"]


def test_a_variant_of_a_base_is_stored(admin, dataset):
    records = [{**EXAMPLES[0], "uid": "f1", "input_id": "1"}]
    form = dataset_form(dataset.task, name="tweets", variant="fairness", file=file_of(records))

    response = admin.post(DATASET_ADD, form)

    assert response.status_code == 302, errors(response)
    assert dataset.task.storage().exists("datasets/sentiment/fairness-tweets.jsonl")


def test_without_a_new_file_a_dataset_keeps_its_own(admin, evaluated, dataset):
    response = admin.post(url(dataset), {"access_type": "hidden", "weight": "2"})

    assert response.status_code == 302, errors(response)
    changed = Dataset.objects.get()
    assert (changed.access_type, changed.inputs_sha256) == ("hidden", dataset.inputs_sha256)
    assert Inference.objects.unfinished().count() == 0


def test_a_new_file_is_evaluated_again(admin, evaluated, dataset):
    response = admin.post(url(dataset), {"access_type": "scoring", "weight": "5", "file": file_of(EXAMPLES[:3])})

    assert response.status_code == 302, errors(response)
    assert Dataset.objects.get().examples == 3
    assert Inference.objects.unfinished().count() == 1
    assert CurrentScores.objects.count() == 1


def test_a_bad_new_file_leaves_the_old_one(admin, evaluated, dataset):
    admin.post(url(dataset), {"access_type": "hidden", "weight": "5", "file": file_of(BAD_FILES[0][0])})

    kept = Dataset.objects.get()
    assert (kept.examples, kept.access_type, kept.labels_sha256) == (4, "scoring", dataset.labels_sha256)


def test_a_dataset_with_results_is_not_deleted(admin, evaluated, dataset):
    admin.post(url(dataset, "delete"), {"post": "yes"})

    assert Dataset.objects.exists()


def test_an_eval_server_keeps_its_name(admin, task):
    server = EvalServer.objects.get(pk="flores101")

    response = admin.post(url(server), {"name": "other", "processes": "8", "max_inferences": "3"})

    assert response.status_code == 302, errors(response)
    assert EvalServer.objects.get(pk="flores101").processes == 8
    assert not EvalServer.objects.filter(pk="other").exists()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("name", "build", "reserved"), ("name", "Flores", "Small letters"), ("processes", "0", "greater than or equal")],
)
def test_an_impossible_eval_server_is_refused_at_its_field(admin, field, value, said):
    form = {"name": "gpu", "processes": "4", "max_inferences": "2"}

    response = admin.post("/admin/tasks_catalog/evalserver/add/", form | {field: value})

    assert said in errors(response)[field]


def act(admin, name, *rows):
    page = reverse(f"admin:{rows[0]._meta.app_label}_{rows[0]._meta.model_name}_changelist")
    return admin.post(page, {"action": name, "_selected_action": [row.pk for row in rows]})


def test_failed_models_are_retried_and_the_others_are_counted(admin, evaluated, user, task):
    other = Submission.objects.create(owner=user, task=task, name="model-b")
    other.advance("uploaded")
    build = make_built(other)
    Build.objects.filter(pk=build.pk).update(status="failed")
    Submission.objects.filter(pk=other.pk).update(status="failed")

    response = act(admin, "retry", evaluated, other)

    assert "Re-queued 1 of 2 submissions." in texts(response)
    assert "there is nothing to retry" in texts(response)
    build.refresh_from_db()
    assert build.status == "queued"


def test_models_are_published_and_unpublished(admin, evaluated):
    act(admin, "unpublish", evaluated)
    assert not Submission.objects.get().is_published

    response = act(admin, "publish", evaluated)

    assert "Published 1 of 1 submission." in texts(response)
    assert Submission.objects.get().is_published


def test_a_model_without_scores_is_not_published(admin, submission, dataset):
    response = act(admin, "publish", submission)

    assert "Published 0 of 1 submission. ts1-model-a (sentiment): model-a can't be published yet" in texts(
        response
    ).replace(f"ts{submission.pk}", "ts1")


def test_a_model_is_cancelled(admin, submission):
    act(admin, "cancel", submission)

    assert Submission.objects.get().cancel_requested


def test_a_model_is_rebuilt(admin, evaluated):
    act(admin, "rebuild", evaluated)

    assert Build.newest(evaluated).run == 2


def test_cancelling_a_build_cancels_its_model(admin, submission):
    build = Build.wanted(submission)

    act(admin, "cancel", build)

    assert Submission.objects.get().cancel_requested


def test_a_dead_inference_is_retried(admin, evaluated):
    Inference.objects.update(status="dead")
    Submission.objects.update(status="dead")

    response = act(admin, "retry", Inference.objects.get())

    assert "Re-queued 1 of 1 inference." in texts(response)
    assert Inference.objects.get().status == "queued"


def test_what_the_machine_made_can_not_be_added_edited_or_deleted(admin, evaluated):
    for row in (evaluated, Build.objects.get(), Inference.objects.get(), Scoring.objects.get()):
        assert admin.get(url(row)).status_code == 200
        assert admin.post(url(row), {"status": "succeeded"}).status_code == 403
        assert admin.post(url(row, "delete"), {"post": "yes"}).status_code == 403
        assert admin.get(url(row).replace(f"{row.pk}/change", "add")).status_code == 403


@pytest.mark.parametrize("model", [Task, Dataset, EvalServer, Submission, Build, Inference, Scoring])
def test_a_list_takes_as_many_queries_for_many_rows_as_for_one(
    admin, evaluated, user, task, model, django_assert_max_num_queries
):
    for number in range(5):
        extra = Submission.objects.create(owner=user, task=task, name=f"extra-{number}")
        extra.advance("uploaded")
        make_built(extra)
        store_dataset_file(Dataset(task=task, name=f"set-{number}"), jsonl(EXAMPLES))
    page = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")

    with django_assert_max_num_queries(14):
        assert admin.get(page).status_code == 200
