"""`hotshelf push` as a process: killed half-way, and what the next one sends."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import yaml

from hotshelf_daemon.origin.outgoing import PART_BYTES
from tests.conftest import BUCKET
from tests.pushing import Big, Dam, bytes_sent, numbers, part_puts
from tests.servers.child import clean_environment
from tests.servers.recorder import Recorder

SIZE = 200_000_000
THROUGH = 6


def begin(big: Big, recorder: Recorder, tmp_path: pathlib.Path) -> subprocess.Popen[str]:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"origins": {"it": big.origin.settings(BUCKET, endpoint_url=recorder.endpoint_url)}}))
    argv = [sys.executable, "-m", "hotshelf", "push", str(big.folder), big.target, "--config", str(config), "--format", "json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=clean_environment())


@pytest.mark.parametrize("service", ["seaweedfs", "moto"])
def test_a_push_that_was_killed_half_way_is_gone_on_with_by_the_next_which_sends_only_the_parts_that_are_missing(
    service: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path, prefix: str
) -> None:
    big = Big.of(request.getfixturevalue(service), tmp_path, prefix, SIZE)
    with Recorder(big.origin.endpoint_url) as recorder:
        dam = Dam(recorder, big.key, THROUGH)
        with begin(big, recorder, tmp_path) as first:
            dam.wait()
            os.kill(first.pid, signal.SIGKILL)
        dam.open()
        recorder.stop()
        recorder.start()
        ((upload, there),) = big.unfinished(whole=True).items()
        assert len(there) == THROUGH
        assert big.names() == set()
        recorder.reset()

        with begin(big, recorder, tmp_path) as second:
            said, told = second.communicate()
        assert second.returncode == 0, told
        sent = part_puts(recorder, big.key)
        assert {one.query["uploadId"] for one in sent} == {upload}
        assert set(numbers(sent)) == set(range(1, big.count + 1)) - there
        assert len(sent) == big.count - THROUGH
        assert bytes_sent(sent) == SIZE - sum(len(big.part(number)) for number in there) <= SIZE - (THROUGH - 1) * PART_BYTES
        report = json.loads(said)
        assert (report["uploaded_files"], report["uploaded_bytes"]) == (1, bytes_sent(sent))
        big.assert_published()
