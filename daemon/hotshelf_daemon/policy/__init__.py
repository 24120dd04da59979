"""The content policy: what may execute never becomes visible."""

from hotshelf_daemon.policy.documents import MAX_DOCUMENT_BYTES, check, is_document
from hotshelf_daemon.policy.opening import reason_by_bytes
from hotshelf_daemon.policy.rules import Policy, check_weights_left

__all__ = ["MAX_DOCUMENT_BYTES", "Policy", "check", "check_weights_left", "is_document", "reason_by_bytes"]
