"""The forms behind the configuration pages: what can't work is refused at its field, before it is saved."""

from __future__ import annotations

from typing import Any, BinaryIO

from django import forms
from django.core.exceptions import ValidationError

from evaluations.datasets import FORMATS, DatasetError, dataset_class
from evaluations.spool import Spool
from tasks_catalog import metrics
from tasks_catalog.files import opened
from tasks_catalog.formats import parse
from tasks_catalog.models import Dataset, InstanceType, TaskMetric

EXAMPLE_FIELDS = """\
context: []
input:
  - {name: statement, type: string, placeholder: Enter a statement}
  - {name: label, type: multiclass, labels: [negative, positive, neutral]}
output:
  - {name: label}
  - {name: prob, type: prob, reference_name: label}
"""


class ObjectField(forms.JSONField):
    """A JSON object; blank is the empty one."""

    def clean(self, value: Any) -> dict[str, Any]:
        found = super().clean(value)
        if found is not None and not isinstance(found, dict):
            raise ValidationError('Write a JSON object, like {"name": "value"}.')
        return found or {}


class TaskForm(forms.ModelForm):
    """`is_only_shown`: everything is checked and shown again, as after an error, but nothing is saved."""

    is_only_shown = False

    class Meta:
        widgets = {"io_yaml": forms.Textarea(attrs={"rows": 12, "cols": 100, "spellcheck": "false"})}

    def changes_format(self) -> bool:
        """Whether the fields mean something else than before; browsers change line ends of what they send back."""
        return parse(self.initial["io_yaml"]) != parse(self.cleaned_data["io_yaml"])

    def is_valid(self) -> bool:
        return super().is_valid() and not self.is_only_shown


class InstanceTypeField(forms.ModelChoiceField):
    """Chosen by what it has and costs."""

    default_error_messages = {"invalid_choice": "Choose one of the list, or add it first under Instance types."}

    def label_from_instance(self, instance_type: InstanceType) -> str:
        return instance_type.described


class BuildConfigForm(forms.ModelForm):
    class Meta:
        field_classes = {"instance_type": InstanceTypeField}

    def has_changed(self) -> bool:
        """A new task gets its build config also when nobody touched the defaults."""
        return self.instance._state.adding or super().has_changed()


def metric_choices() -> list[tuple[str, list[tuple[str, str]]]]:
    """The known metrics, grouped by kind."""
    groups: list[tuple[str, list[tuple[str, str]]]] = [("", [("", "---------")])]
    for kind in TaskMetric.Kind:
        names = metrics.names(kind.value)
        groups.append((kind.label, [(name, f"{metrics.get(name).label} ({name})") for name in names]))
    return groups


class TaskMetricForm(forms.ModelForm):
    """The kind follows from the metric; nobody has to choose it."""

    name = forms.ChoiceField(
        label="metric",
        choices=metric_choices,
        error_messages={"invalid_choice": "There is no metric %(value)s: choose one of the list."},
    )

    class Meta:
        widgets = {
            "reference": forms.TextInput(attrs={"size": 12}),
            "options": forms.Textarea(attrs={"rows": 1, "cols": 24, "spellcheck": "false"}),
            "weight": forms.NumberInput(attrs={"class": "vIntegerField", "step": "any", "min": 0}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        row = self.instance
        self.has_new_file = bool(row.files) and row.files != metrics.file_hashes(row.name, row.options)

    def has_changed(self) -> bool:
        """Also when a file that its options name was replaced."""
        return self.has_new_file or super().has_changed()

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if name := cleaned.get("name"):
            self.instance.kind = metrics.get(name).kind
        return cleaned


class TaskMetricFormSet(forms.BaseInlineFormSet):
    def clean(self) -> None:
        super().clean()
        if any(self.errors):
            return
        kept = [form for form in self.forms if form.cleaned_data and not form.cleaned_data.get("DELETE")]
        ranking = [form for form in kept if form.cleaned_data["ranks"]]
        if not ranking:
            raise ValidationError("No metric ranks the models: tick “ranks models” on one performance metric.")
        for form in ranking[1:]:
            first = ranking[0].cleaned_data["name"]
            form.add_error("ranks", f"{first} ranks the models already: tick “ranks models” on one metric only.")


class DatasetForm(forms.ModelForm):
    """One file with everything; the split into inputs and labels is ours."""

    format = forms.ChoiceField(
        choices=lambda: [(name, name) for name in sorted(FORMATS)],
        initial="JsonLines",
        help_text="Flores for translations, which are scored by direction; docs/metrics.md has an example of each.",
    )
    file = forms.FileField(
        help_text="JSON Lines in UTF-8, may be gzipped: one example a line with uid, all fields of the task, and tags; "
        "perturbed variants with input_id, the uid of the base example. Every line is checked before anything is saved."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.instance._state.adding:
            self.fields["file"].required = False
            self.fields["file"].help_text += " Blank: the file stays. A new one is evaluated with all models again."

    def _post_clean(self) -> None:
        super()._post_clean()
        if not self.errors and self.instance._state.adding:
            self._check_name()
        if not self.errors:
            self._check_variant()
        if not self.errors and self.cleaned_data.get("file"):
            try:
                _check_file(self.instance, self.cleaned_data["file"])
            except DatasetError as error:
                self.add_error("file", str(error))

    def _check_name(self) -> None:
        """A sharded dataset's files are all that begin with its name and a hyphen; no other dataset's may."""
        dataset = self.instance
        for other in dataset.task.datasets.all():
            for longer, shorter in ((dataset, other), (other, dataset)):
                is_sharded = dataset_class(shorter.format).is_sharded
                if is_sharded and longer.full_name.startswith(f"{shorter.full_name}-"):
                    reason = f"The files of {shorter} begin with {shorter}-, which {longer} does too"
                    self.add_error("name", f"{reason}: choose a name that doesn't.")

    def _check_variant(self) -> None:
        dataset = self.instance
        if dataset.variant == Dataset.Variant.BASE:
            return
        base = dataset.base()
        fixed = [row.format for row in (dataset, base) if row and not dataset_class(row.format).takes_variants]
        if fixed:
            self.add_error("variant", f"{fixed[0]} datasets have no perturbed variants: choose base and another name.")
        elif base is None:
            remedy = f"add it first, or choose the name of one of {', '.join(_base_names(dataset)) or '(none yet)'}"
            field = "name" if "name" in self.fields else "file"
            self.add_error(field, f"There is no base set {dataset.name} in {dataset.task} to perturb: {remedy}.")


def _base_names(dataset: Dataset) -> list[str]:
    return [row.name for row in dataset.task.datasets.base()]


def _check_file(dataset: Dataset, file: BinaryIO) -> None:
    """Read the whole upload and throw the result away; raise DatasetError at the first bad line."""
    reader, task_format = dataset_class(dataset.format), dataset.task.format
    with Spool() as inputs, Spool() as labels:
        file.seek(0)
        reader.split_upload(file, task_format, inputs, labels)
        base = dataset.base()
        if dataset.variant == Dataset.Variant.BASE or base is None:
            return
        with opened(base.task.storage(), base.labels_keys, sha256=base.labels_sha256) as source:
            known = reader.read_labels(source, task_format)
        with labels.opened("") as source:
            found = reader.read_labels(source, task_format)
        for number, (uid, label) in enumerate(found.items(), start=1):
            if label.input_id not in known:
                detail = f"the input_id of {uid} is {label.input_id!r}, which is no uid of {base}."
                raise DatasetError(number, "input_id", detail)
