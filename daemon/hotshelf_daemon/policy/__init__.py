"""The content policy: what may execute never becomes visible."""

from hotshelf_daemon.policy.documents import MAX_DOCUMENT_BYTES, check, is_document
from hotshelf_daemon.policy.opening import reason_by_bytes
from hotshelf_daemon.policy.rules import Policy, check_weights_left
from hotshelf_daemon.policy.tensors import check_tensors, is_tensors

__all__ = [
    "MAX_DOCUMENT_BYTES", "Policy", "check", "check_tensors", "check_weights_left", "is_document", "is_tensors",
    "reason_by_bytes",
]  # fmt: skip
