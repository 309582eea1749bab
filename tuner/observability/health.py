"""Health check of a container: exit with 0 if a service is healthy, else with 1 and the reason.

Run `python -m tuner.observability.health URL`. The request uses the MLflow account in
`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, if they are set.
"""

from __future__ import annotations

import base64
import os
import sys
import urllib.error
import urllib.request

from tuner.core.redaction import redacted
from tuner.core.text import printable

TIMEOUT_SECONDS = 8.0


def main(url: str) -> int:
    """Request `url` without a proxy; print any error response to standard error."""
    request = urllib.request.Request(url)  # noqa: S310 - the URL is given by the caller
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        account = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(account).decode()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS):
            return 0
    except urllib.error.HTTPError as error:
        body = error.read(200).decode(errors="replace")
        print(printable(redacted(f"{url}: {error.code} {body}")), file=sys.stderr)  # noqa: T201
    except OSError as error:
        print(printable(redacted(f"{url}: {error}")), file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
