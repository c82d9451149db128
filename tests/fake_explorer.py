"""A stand-in for `emulator.explore` in tests of the plumbing: what it sends stands in its job.

The spec's command line is a JSON list of records; ["sleep", seconds] between them waits, ["die"]
ends the process.
"""

import json
import os
import socket
import time
from typing import Any


def serve(job: dict[str, Any], images: dict[str, bytes], control: socket.socket) -> None:
    for record in json.loads(job["spec"]["append"]):
        if record == ["die"]:
            os._exit(9)
        if isinstance(record, list):
            time.sleep(record[1])
        else:
            control.sendall(json.dumps(record).encode())
    time.sleep(30)
