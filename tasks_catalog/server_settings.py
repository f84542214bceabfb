"""Which settings of TorchServe a task may change: none that opens the server, runs code, or is the image's own."""

from __future__ import annotations

import re

NAME = re.compile(r"[a-z_]+")
NUMBERS = (
    "default_response_timeout",
    "max_request_size",
    "max_response_size",
    "job_queue_size",
    "netty_client_threads",
    "number_of_netty_threads",
)
SWITCHES = ("decode_input_request", "limit_max_image_pixels", "prefer_direct_buffer")


def check_server_setting(key: str, value: object) -> None:
    """Raise ValueError, with the remedy, unless a task's `torchserve_config` may have this entry."""
    if not NAME.fullmatch(key) or not isinstance(value, (str, bool, int)):
        raise ValueError(f"{key}: a name in small letters with text, true, false or a number.")
    if key in NUMBERS:
        if isinstance(value, bool) or not re.fullmatch("[1-9][0-9]{0,9}", str(value)):
            raise ValueError(f"{key} is a whole number from 1: seconds, bytes or how many.")
    elif key in SWITCHES:
        if str(value).lower() not in {"true", "false"}:
            raise ValueError(f"{key} is true or false.")
    else:
        raise ValueError(
            f"{key} can't be set by a task: addresses, models, workers and what may run are the image's own. "
            f"Leave it out. Tasks may set {', '.join((*NUMBERS, *SWITCHES))}."
        )
