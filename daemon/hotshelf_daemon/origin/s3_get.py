"""GETs of objects over boto3's own connections and with its own signatures, past what its client does beside for each.

`get_object` takes 1.1 ms of processor, most of it for rules, hooks and parameters that are the same every time; this takes 0.5.
The first GET goes through the client and shows where the others go and how they are signed; so does whatever is sent elsewhere,
since only the client knows its way there. What an answer says that has no bytes is read by boto3's own parser.
"""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import quote

from botocore.awsrequest import AWSRequest
from botocore.endpoint import convert_to_response_dict
from botocore.exceptions import ClientError
from botocore.response import StreamingBody

#: Parameters of `get_object` and the headers that they are; others are not used here.
_HEADERS = {"Range": "Range", "IfMatch": "If-Match"}
_FIELDS = {"etag": "ETag", "content-encoding": "ContentEncoding", "content-range": "ContentRange"}
#: Another host; and what is said of a signature for another region.
_REDIRECTS = {301, 302, 307, 308}
_ELSEWHERE = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


class Getter:
    """`get_object` of one bucket. Thread-safe."""

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self._bucket = bucket
        self._operation = client.meta.service_model.operation_model("GetObject")
        #: Where a key's address and its signed path begin, and what signing must know; None until a request has shown it.
        self._way: tuple[str, str | None, dict[str, Any]] | None = None
        self._sent = threading.local()
        client.meta.events.register("request-created.s3.GetObject", self._remember)

    def get(self, key: str, **wanted: str) -> Any:
        """What `get_object` answers, with its body as a stream; raises what it does."""
        if (way := self._way) is None:
            return self._by_client(key, wanted)
        address, signed, context = way
        headers = {_HEADERS[name]: value for name, value in wanted.items()}
        headers["User-Agent"] = self.client.meta.config.user_agent
        request = AWSRequest("GET", address + _quoted(key), headers, auth_path=signed and signed + _quoted(key))
        request.stream_output, request.context = True, dict(context)
        self.client._request_signer.sign("GetObject", request)
        response = self.client._endpoint.http_session.send(request.prepare())
        if response.status_code < 300:
            return answered(response)
        if response.status_code in _REDIRECTS:
            response.raw.close()
        elif (error := self._refusal(response)).response["Error"].get("Code") not in _ELSEWHERE:
            raise error
        self._way = None
        return self._by_client(key, wanted)

    def _by_client(self, key: str, wanted: dict[str, str]) -> Any:
        answer = self.client.get_object(Bucket=self._bucket, Key=key, **wanted)
        address, signed, context = self._sent.last
        if all(path.endswith(_quoted(key)) for path in (address, signed or address)):
            self._way = address.removesuffix(_quoted(key)), signed and signed.removesuffix(_quoted(key)), context
        return answer

    def _remember(self, request: Any, **_: object) -> None:
        self._sent.last = request.url, request.auth_path, dict(request.context)

    def _refusal(self, response: Any) -> ClientError:
        parser = self.client._response_parser
        answer = parser.parse(convert_to_response_dict(response, self._operation), self._operation.output_shape)
        kind: type[ClientError] = self.client.exceptions.from_code(answer.setdefault("Error", {}).get("Code"))
        return kind(answer, "GetObject")


def answered(response: Any) -> dict[str, Any]:
    """What boto3 would make of a good answer."""
    told = {name.lower(): value for name, value in response.headers.items()}
    answer: dict[str, Any] = {field: told[name] for name, field in _FIELDS.items() if name in told}
    if (length := told.get("content-length")) is not None:
        answer["ContentLength"] = int(length)
    answer["ResponseMetadata"] = {"HTTPStatusCode": response.status_code, "HTTPHeaders": told}
    answer["Body"] = StreamingBody(response.raw, length)  # type: ignore[arg-type] # it knows None
    return answer


def _quoted(key: str) -> str:
    return quote(key, safe="/~")
