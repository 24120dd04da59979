"""The file system of a path, read out of a mountinfo as Linux writes it."""

from __future__ import annotations

import os

import pytest

from hotshelf_shared.mounts import file_system_of, is_in_memory, is_network, kind_of

MOUNTINFO = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /shelf rw,relatime shared:7 master:2 - nfs4 nas:/export rw,vers=4.2
31 30 0:41 / /shelf/local rw - xfs /dev/nvme0n1 rw
32 22 0:42 / /with\040space rw - fuse.juicefs JuiceFS:hot rw
33 22 0:43 / /\303\244hnlich rw - cifs //nas/share rw
34 22 0:44 / /twice rw - tmpfs tmpfs rw
35 34 0:45 / /twice rw - ceph mon:/ rw
a line of some later kernel
""".replace(rb"\303\244", "ä".encode())  # the kernel writes octal for white space and backslashes only


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/shelfless", "ext4"),
        ("/shelf", "nfs4"),
        ("/shelf/blobs/sha256/ab", "nfs4"),
        ("/shelf/local/x", "xfs"),
        ("/with space/x", "fuse.juicefs"),
        ("/ähnlich/x", "cifs"),
        ("/twice/x", "ceph"),
    ],
)
def test_a_path_lies_on_the_longest_mount_above_it_and_the_last_of_two_on_one_point(path: str, kind: str) -> None:
    assert kind_of(path, MOUNTINFO) == kind


def test_without_any_mount_nothing_is_said() -> None:
    assert kind_of("/shelf", b"") == ""


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse", "fuse.s3fs", "virtiofs", "ceph", "lustre", "glusterfs"]
)
def test_what_others_fetch_is_a_network_file_system(kind: str) -> None:
    assert is_network(kind)
    assert not is_in_memory(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", ""])
def test_a_disk_of_this_machine_and_an_unknown_one_are_none(kind: str) -> None:
    assert not is_network(kind)


def test_links_are_followed(tmp_path: os.PathLike[str]) -> None:
    link = os.path.join(tmp_path, "link")
    os.symlink("/proc/self/status", link)
    assert file_system_of(link) == "proc"
