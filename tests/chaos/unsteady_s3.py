"""An S3-compatible server that refuses a share of the requests, as an overloaded one does.

python tests/chaos/unsteady_s3.py PORT SHARE
"""

import random
import sys
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Unsteady:
    def __init__(self, share: float) -> None:
        self.share, self.whole = share, DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/moto-api") or random.random() >= self.share:
            return self.whole(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
        return [SLOW_DOWN]


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), Unsteady(float(sys.argv[2])), threaded=True)
