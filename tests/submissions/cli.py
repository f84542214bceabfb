"""What the dynalab CLI puts on the wire: the bytes that requests_toolbelt's MultipartEncoder makes."""

from __future__ import annotations

import json

from submissions.authentication import access_token
from submissions.models import ApiToken
from tests.submissions.tarballs import CONFIG, TASK, file, folder, packed

BOUNDARY = "0f3f6bc5a3a04b3c8e8b0e1d2c4b5a69"
UPLOAD = "/models/upload/s3"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"


def archive(name, *, weights=b"weights", task=TASK):
    config = file(f"./.dynalab/{name}/setup_config.json", json.dumps(CONFIG | {"task": task}).encode())
    return packed(folder("./") + config + file("./checkpoint.pt", weights) + file("./handler.py", b"pass\n"))


def body(name, tarball, *, task=TASK):
    fields = (("name", name), ("taskCode", task))
    texts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{text}\r\n' for key, text in fields]
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="tarball"; filename="{name}.tar.gz"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return "".join([*texts, head]).encode() + tarball + f"\r\n--{BOUNDARY}--\r\n".encode()


def bearer(user):
    return f"Bearer {access_token(ApiToken.make(user=user, name='laptop')[0])}"


def upload(client, user, name="my-model", tarball=None, *, task=TASK):
    """One upload, as the CLI sends it; the answer."""
    sent = body(name, archive(name) if tarball is None else tarball, task=task)
    return client.post(UPLOAD, sent, content_type=CONTENT_TYPE, headers={"Authorization": bearer(user)})
