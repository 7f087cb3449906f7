"""A file's digest is BLAKE3 of its bytes, however many of them are read at a time."""

import pytest
from blake3 import blake3

from stages.contract.digest import BLOCK, file_digest


@pytest.mark.parametrize("size", [0, 1, BLOCK, 2 * BLOCK + 5])
def test_a_digest_is_that_of_all_bytes_in_their_order(tmp_path, size):
    content = bytes(i * i % 251 for i in range(1000)) * (size // 1000 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert file_digest(tmp_path / "file") == blake3(content[:size]).hexdigest()
