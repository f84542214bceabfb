from django.db import migrations


def make_eval_servers(apps, schema_editor):
    servers = apps.get_model("tasks_catalog", "EvalServer").objects
    servers.get_or_create(name="default", defaults={"description": "Evaluates all tasks that name no other."})
    servers.get_or_create(name="flores101", defaults={"description": "Evaluates the translation tasks."})


class Migration(migrations.Migration):
    dependencies = [("tasks_catalog", "0001_initial")]
    operations = [migrations.RunPython(make_eval_servers, migrations.RunPython.noop)]
