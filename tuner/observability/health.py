"""Health checks of containers: exit with 0 if a service is healthy, else with 1 and the reason.

Run `python -m tuner.observability.health URL`. The request is made with the MLflow account in
`MLFLOW_TRACKING_USERNAME`, if it is set.
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
    """Ask, past any proxy; whatever is not an answer of success is said on standard error."""
    request = urllib.request.Request(url)  # noqa: S310 - whoever starts us names it
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        account = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(account).decode()}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS):
            return 0
    except urllib.error.HTTPError as error:
        said = error.read(200).decode(errors="replace")
        print(printable(redacted(f"{url}: {error.code} {said}")), file=sys.stderr)  # noqa: T201
    except OSError as error:
        print(printable(redacted(f"{url}: {error}")), file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
