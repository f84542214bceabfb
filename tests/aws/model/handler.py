"""Does what the statement says: sleeps, dies, lists the model's data, or answers."""

import os
import time
from pathlib import Path

if os.environ.get("MODE") == "broken":
    raise RuntimeError("The weights are of another model.")


def handle(data, context):
    if data is None:
        return None
    example = data[0]["body"]
    print(f"asked {sorted(example)}")
    match example["statement"]:
        case "sleep":
            time.sleep(600)
        case "die":
            os._exit(3)
        case "data":
            return [{"id": example["uid"], "label": ",".join(path.name for path in Path("/opt/ml/model").iterdir())}]
    return [{"id": example["uid"], "label": "positive"}]
