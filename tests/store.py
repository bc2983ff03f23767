"""An S3 server on this machine, in a process of its own: moto's, or one that forgets a promise.

python -m tests.store [--forgets]      prints its port, and serves until it is killed
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

BUCKET = "bucket"
#: What a command line needs to know to use it.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "no-secret-at-all",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Store:
    """The objects of its bucket, over plain HTTP: nothing of what is tested is used."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}

    def put(self, key: str, content: bytes) -> None:
        self._ask("PUT", key, content)

    def get(self, key: str) -> bytes:
        return self._ask("GET", key)

    def remove(self, key: str) -> None:
        self._ask("DELETE", key)

    def keys(self, prefix: str) -> list[str]:
        """The keys of all objects below a prefix."""
        found: list[str] = []
        while True:
            after = quote(found[-1], safe="") if found else ""
            answer = self._ask("GET", f"?list-type=2&prefix={quote(prefix)}&start-after={after}")
            tree = ElementTree.fromstring(answer)
            space = tree.tag.partition("}")[0] + "}"
            keys = [str(key.text) for key in tree.iter(f"{space}Key")]
            found += keys
            if not keys or tree.findtext(f"{space}IsTruncated") != "true":
                return found

    def objects(self, prefix: str) -> dict[str, bytes]:
        """What lies right below a prefix, by the rest of the key."""
        return {key.removeprefix(prefix): self.get(key) for key in self.keys(prefix)}

    def versions(self, prefix: str) -> Counter[str]:
        """How often each object below a prefix was created or replaced, by the rest of its key."""
        tree = ElementTree.fromstring(self._ask("GET", f"?versions&prefix={quote(prefix)}"))
        space = tree.tag.partition("}")[0] + "}"
        assert tree.findtext(f"{space}IsTruncated") != "true"
        found = [str(one.findtext(f"{space}Key")) for one in tree.iter(f"{space}Version")]
        return Counter(key.removeprefix(prefix) for key in found)

    def _ask(self, method: str, rest: str, content: bytes | None = None) -> bytes:
        # moto asks for no signature, but for the header of one.
        headers = {
            "Authorization": "AWS4-HMAC-SHA256 Credential=nobody/20260101/us-east-1/s3/aws4",
            "Content-Type": "application/octet-stream",
            "x-amz-acl": "public-read",  # so that they are at a web address too
        }
        address = f"{self.endpoint}/{BUCKET}/{rest}" if rest else f"{self.endpoint}/{BUCKET}"
        request = urllib.request.Request(address, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def create_bucket(self) -> None:
        self._ask("PUT", "", b"")
        keep = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        self._ask("PUT", "?versioning", keep.encode())


def serve(*, forgets: bool) -> None:
    """Serve until killed. `forgets`: a name that is taken is never refused."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app: Callable[..., Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)

    def forgetful(environ: Mapping[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        kept = {name: v for name, v in environ.items() if name != "HTTP_IF_NONE_MATCH"}
        return app(kept, start)

    server = make_server("127.0.0.1", 0, forgetful if forgets else app, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(forgets="--forgets" in sys.argv)
