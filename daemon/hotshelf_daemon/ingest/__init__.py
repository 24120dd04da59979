"""Bytes come in: `Ingests.bring` puts one content onto the shelf, verified and durable."""

from hotshelf_daemon.ingest.engine import Brought, Ingests, Order
from hotshelf_daemon.ingest.receiving import Receiver
from hotshelf_daemon.ingest.segment import Meter

__all__ = ["Brought", "Ingests", "Meter", "Order", "Receiver"]
