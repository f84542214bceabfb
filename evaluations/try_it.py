"""The *Try it* box: a form with one field for each that a model of the task receives."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_http_methods

from dynabench_site.api import ApiError
from evaluations import talking
from submissions.models import Submission
from tasks_catalog.fields import Field
from tasks_catalog.formats import FormatError
from tasks_catalog.models import Task


class ExampleForm(forms.Form):
    """Filled in with a made-up example; says what the task's format says, at the field at fault."""

    def __init__(self, task: Task, asked: Any = None) -> None:
        super().__init__(asked, prefix="try")
        self.task_format = task.format
        (sample,) = self.task_format.sample_inputs(1)
        self.fields |= {name: _text_field(field, sample[name]) for name, field in self.task_format.seen.items()}

    def clean(self) -> dict[str, Any]:
        texts = {name: text.replace("\r\n", "\n") for name, text in self.cleaned_data.items()}
        try:
            return self.task_format.check_inputs(texts)
        except FormatError as error:
            self.add_error(error.field or None, str(error))
            return texts


def _text_field(field: Field, sample: object) -> forms.CharField:
    is_long = field.type == "string"
    return forms.CharField(
        label=field.display_name or field.name,
        initial=sample,
        required=False,  # an empty text is a text
        strip=False,
        help_text="" if is_long else f"One of {', '.join(field.labels)}.",
        widget=forms.Textarea({"rows": 3}) if is_long else forms.TextInput,
    )


@login_required
@require_http_methods(["GET", "POST"])
def try_it(request: HttpRequest, pk: int) -> HttpResponse:
    """Ask a model what the form holds, and show its answer, or why there is none, above the form."""
    submission = get_object_or_404(Submission.objects.select_related("owner", "task__build_config"), pk=pk)
    if not submission.belongs_to(request.user):
        raise Http404
    form = ExampleForm(submission.task, request.POST if request.method == "POST" else None)
    context, status = {"submission": submission, "form": form}, 200
    try:
        context |= _answer(request, submission, form)
    except ApiError as error:
        context["refusal"], status = error, error.status
    return render(request, "evaluations/try_it.html", context, status=400 if form.errors else status)


def _answer(request: HttpRequest, submission: Submission, form: ExampleForm) -> dict[str, Any]:
    """What the template shows of the answer; nothing before a whole example was sent."""
    talking.check_size(request)
    if not form.is_valid():
        return {}
    talking.check_rate(request)
    result = talking.predict(submission, form.cleaned_data)
    return {"result": result, "answer": json.dumps(result["answer"], ensure_ascii=False, indent=2)}
